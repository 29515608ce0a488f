//! Convolutions as calls of kernels: cut into chunks, which the threads of a pool may share.
//!
//! A chunk is some pixels of the output, or some of their channels: no two write the same byte, and none depends on what
//! another one writes. Loads may cover neighbouring channels, or the bytes behind a run of taps, that another chunk is
//! writing; machine code then sees old bytes or new ones. It drops them or multiplies them by zero; of transformed tiles
//! they are a part until they cancel.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use crate::kernels::aligned::Aligned;
use crate::kernels::depthwise::Depthwise;
use crate::kernels::gather::Gather;
use crate::kernels::lookup::Lookup;
use crate::kernels::offsets::Offsets;
use crate::kernels::pool::Pool;
use crate::kernels::runs::Runs;
use crate::kernels::walk::{self, Span, Walk};
use crate::kernels::winograd::{Form, TILES, TILES_STEP, Winograd};
use crate::kernels::{BLOCK, Kernels, Multiply};
use crate::plan::{ConvStep, DepthwiseStep};
use crate::tensor::Shape;
use crate::view::View;

type Arena<'a> = &'a [Cell<u8>];

/// Chunks for each thread: enough that one that gets half its core holds up little.
const CHUNKS: usize = 6;
/// Multiplications of a chunk at least, where there is a choice: some microseconds.
const CHUNK_MACS: usize = 150_000;
/// Layers with fewer multiplications are done before a helper has heard of them.
const FEWEST_MACS: usize = 400_000;
/// Channels of a chunk are a multiple of this.
const PART: usize = 2 * BLOCK;

/// The threads that work on a layer, and memory for each.
#[derive(Debug)]
pub(crate) struct Team {
    pool: Option<Arc<Pool>>,
    scratch: Vec<Scratch>,
}

/// Memory of one thread.
#[derive(Debug, Clone)]
struct Scratch {
    panel: Aligned,
    /// What the panel holds, of the layer at hand: image, group, first pixel. Chunks that share it are neighbours, so one thread
    /// often takes several.
    held: Option<[usize; 3]>,
    outputs: Offsets,
    others: Offsets,
    spans: Vec<Span>,
}

impl Scratch {
    fn new(panel_bytes: usize, rows: usize) -> Self {
        let offsets = || Offsets::new(rows);
        Self {
            panel: Aligned::new(panel_bytes),
            held: None,
            outputs: offsets(),
            others: offsets(),
            spans: Vec::with_capacity(rows),
        }
    }
}

impl Team {
    /// The calling thread alone.
    pub(crate) fn new(panel_bytes: usize, rows: usize) -> Self {
        Self { pool: None, scratch: vec![Scratch::new(panel_bytes, rows)] }
    }

    /// With the threads of a pool from now on.
    pub(crate) fn share(&mut self, pool: &Arc<Pool>) {
        let Scratch { panel, outputs, .. } = &self.scratch[0];
        let (bytes, rows) = (panel.len(), outputs.room());
        self.scratch.resize_with(pool.threads(), || Scratch::new(bytes, rows));
        self.pool = Some(Arc::clone(pool));
    }

    /// Into how many parts each of `whole` chunks of a layer is best cut.
    fn parts(&self, whole: usize, most: usize, macs: usize) -> usize {
        let Some(pool) = &self.pool else { return 1 };
        let chunks = (CHUNKS * pool.threads()).min(macs / CHUNK_MACS).max(pool.threads());
        chunks.div_ceil(whole.max(1)).clamp(1, most.max(1))
    }

    /// Into how many batches tiles are best cut. Each reads all weights, so a single one is rather cut into `parts` of its channels.
    fn batches(&self, tiles: usize, parts: usize) -> usize {
        let fewest = tiles.div_ceil(TILES);
        match &self.pool {
            Some(pool) if fewest > 1 || parts < pool.threads() => {
                fewest.next_multiple_of(pool.threads()).min(tiles.div_ceil(TILES_STEP))
            }
            _ => fewest,
        }
    }

    /// Does all chunks of a layer.
    ///
    /// # Safety
    /// No two chunks write the same byte, and none depends on what another one writes.
    unsafe fn each(&mut self, chunks: usize, macs: usize, work: impl Fn(&mut Scratch, usize)) {
        self.scratch.iter_mut().for_each(|scratch| scratch.held = None);
        match &self.pool {
            Some(pool) if macs >= FEWEST_MACS => {
                // SAFETY: by contract; each thread has a scratch of its own.
                unsafe { pool.each(chunks, &mut self.scratch, work) }
            }
            _ => (0..chunks).for_each(|chunk| work(&mut self.scratch[0], chunk)),
        }
    }
}

/// A number cut into coordinates of these extents, the last one running fastest.
fn coordinates<const N: usize>(mut at: usize, extents: [usize; N]) -> [usize; N] {
    let mut found = [0; N];
    for (found, extent) in found.iter_mut().zip(extents).rev() {
        (*found, at) = (at % extent, at / extent);
    }
    found
}

/// Channels of one of several parts.
fn part(nth: usize, parts: usize, channels: usize) -> Range<usize> {
    let steps = channels.div_ceil(PART);
    let from = |nth: usize| (nth * steps / parts * PART).min(channels);
    from(nth)..from(nth + 1)
}

/// A convolution by panels or by transformed tiles.
pub(crate) fn convolve(conv: &ConvStep, kernels: &Kernels, arena: Arena<'_>, team: &mut Team) {
    if let Some((kernel, form)) = kernels.winograd.zip(conv.form) {
        return tiles(conv, kernels, kernel, form, arena, team);
    }
    let Shape { n: images, c: channels, .. } = conv.y.shape;
    let pixels = conv.y.shape.pixels();
    let (panels, groups) = (pixels.div_ceil(conv.rows), conv.groups.len());
    let per_group = channels / groups;
    let macs = images * pixels * channels * conv.groups[0].0.depth_given;
    let parts = team.parts(images * panels * groups, per_group.div_ceil(PART), macs);
    let extents = [images, panels, groups, parts];
    // SAFETY: a chunk writes its own channels of its own pixels of the output, and reads other tensors.
    unsafe {
        team.each(extents.iter().product(), macs, |scratch, chunk| {
            let [image, panel, group, nth] = coordinates(chunk, extents);
            let start = panel * conv.rows;
            let pixels = start..(start + conv.rows).min(pixels);
            let channels = part(nth, parts, per_group);
            self::panel(conv, kernels, arena, scratch, image, pixels, group, channels);
        });
    }
}

/// Some pixels and channels of one group.
#[expect(clippy::too_many_arguments, reason = "the coordinates of a chunk")]
fn panel(
    conv: &ConvStep,
    kernels: &Kernels,
    arena: Arena<'_>,
    scratch: &mut Scratch,
    image: usize,
    pixels: Range<usize>,
    group: usize,
    channels: Range<usize>,
) {
    let (x, y) = (&conv.x, &conv.y);
    let per_group = (x.shape.c / conv.groups.len(), y.shape.c / conv.groups.len());
    let (weights, epilogue) = &conv.groups[group];
    let gather = Gather {
        arena,
        element: conv.from.element(),
        zero_point: conv.from.zero_point() as i16,
        input: x.channels(group * per_group.0, per_group.0),
        window: conv.window,
        image,
        output_width: y.shape.w,
        pixels: pixels.clone(),
        stride: conv.stride,
    };
    let mut in_place = conv.in_place.then(|| gather.in_place()).flatten();
    let walk = conv.taps.as_ref().map(|taps| {
        let Gather { input, window, output_width, .. } = &gather;
        walk::fill(&mut scratch.spans, window, input, image, *output_width, pixels.clone());
        in_place = Some((arena, walk::stride(window, input, *output_width)));
        Walk { spans: &scratch.spans, taps, flips: !conv.in_place }
    });
    let held = Some([image, group, pixels.start]);
    if in_place.is_none() && scratch.held != held {
        scratch.held = None;
        (kernels.gather)(&gather, &mut scratch.panel);
        scratch.held = held;
    }
    let first = group * per_group.1;
    scratch.outputs.fill(y, image, pixels.clone(), first);
    if let Some(other) = &conv.other {
        scratch.others.fill(other, image, pixels.clone(), first);
    }
    let (panel, panel_stride) = in_place.unwrap_or((scratch.panel.cells(), conv.stride));
    (kernels.multiply)(&Multiply {
        panel,
        panel_stride,
        walk,
        weights,
        channels: channels.clone(),
        epilogue,
        arena,
        outputs: &scratch.outputs,
        others: &scratch.others,
    });
    if let Some(table) = &conv.table {
        let output = y.channels(first + channels.start, channels.len());
        translate(kernels, table, arena, &output, image, pixels);
    }
}

/// A convolution by transformed tiles.
fn tiles(
    conv: &ConvStep,
    kernels: &Kernels,
    kernel: fn(&Winograd<'_>, &mut Aligned),
    form: Form,
    arena: Arena<'_>,
    team: &mut Team,
) {
    let (x, y) = (&conv.x, &conv.y);
    let (images, groups) = (y.shape.n, conv.groups.len());
    let per_group = (x.shape.c / groups, y.shape.c / groups);
    let count: usize = form.tiles(y.shape).iter().product();
    // Every part transforms the inputs again, so parts are few.
    let most = (per_group.1 / 128).max(1);
    let batches = team.batches(count, most);
    let batch = |nth: usize| (nth * count / batches).next_multiple_of(TILES_STEP).min(count);
    let macs = y.shape.pixels() * images * y.shape.c * conv.groups[0].0.depth_given;
    let parts = team.parts(images * batches * groups, most, macs);
    let extents = [images, batches, groups, parts];
    // SAFETY: a chunk writes its own channels of its own tiles of the output, and reads other tensors.
    unsafe {
        team.each(extents.iter().product(), macs, |scratch, chunk| {
            let [image, nth, group, part] = coordinates(chunk, extents);
            let (weights, epilogue) = &conv.groups[group];
            let first = group * per_group.1;
            let call = Winograd {
                form,
                arena,
                element: conv.from.element(),
                zero: conv.from.zero_byte(),
                input: x.channels(group * per_group.0, per_group.0),
                output: y.channels(first, per_group.1),
                other: conv.other.map(|other| other.channels(first, per_group.1)),
                pads: [conv.window.pads[0], conv.window.pads[1]],
                image,
                tiles: batch(nth)..batch(nth + 1),
                channels: self::part(part, parts, per_group.1),
                weights: &weights.values,
                depth: weights.depth,
                epilogue,
            };
            kernel(&call, &mut scratch.panel);
        });
    }
    if let Some(table) = &conv.table {
        for image in 0..images {
            translate(kernels, table, arena, y, image, 0..y.shape.pixels());
        }
    }
}

/// A depthwise convolution, some rows at a time.
pub(crate) fn depthwise(
    conv: &DepthwiseStep,
    kernels: &Kernels,
    arena: Arena<'_>,
    team: &mut Team,
) {
    let Shape { n: images, h: height, w: width, c: channels } = conv.y.shape;
    // Pairs of rows share what they load.
    let macs = images * height * width * channels * conv.window.taps();
    let parts = team.parts(images, height.div_ceil(2), macs);
    let rows = height.div_ceil(parts).next_multiple_of(if parts > 1 { 2 } else { 1 });
    let extents = [images, height.div_ceil(rows)];
    // SAFETY: a chunk writes its own rows of the output, and reads another tensor.
    unsafe {
        team.each(extents.iter().product(), macs, |_, chunk| {
            let [image, nth] = coordinates(chunk, extents);
            let rows = nth * rows..((nth + 1) * rows).min(height);
            let call = Depthwise {
                arena,
                element: conv.element,
                centre: kernels.centre(conv.element),
                input: conv.x,
                output: conv.y,
                window: conv.window,
                weights: &conv.weights,
                epilogue: &conv.epilogue,
                rows: rows.clone(),
            };
            (kernels.depthwise)(&call, image);
            if let Some(table) = &conv.table {
                let pixels = rows.start * width..rows.end * width;
                translate(kernels, table, arena, &conv.y, image, pixels);
            }
        });
    }
}

/// Some pixels of an image, counted row by row, through a table.
fn translate(
    kernels: &Kernels,
    table: &Lookup,
    arena: Arena<'_>,
    view: &View,
    image: usize,
    pixels: Range<usize>,
) {
    let Shape { w: width, c: length, .. } = view.shape;
    let runs = |count| match view.has_dense_rows() {
        true => Runs { length: count * length, count: 1, steps: [0; 2] },
        false => Runs { length, count, steps: [view.pixel; 2] },
    };
    let mut pixel = pixels.start;
    while pixel < pixels.end {
        let (y, x) = (pixel / width, pixel % width);
        // As far as rows follow each other.
        let left = pixels.end - pixel;
        let count = if view.is_dense() { left } else { left.min(width - x) };
        let run = &arena[view.at(image, y, x)..];
        (kernels.translate)(table, run, run, &runs(count));
        pixel += count;
    }
}
