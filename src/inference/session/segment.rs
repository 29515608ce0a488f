//! One segment of a session: its plan, its alternatives, and which of them runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::alternative::{Alternative, Readiness};
use super::source::Source;
use super::verify::{Closeness, Tolerance, difference};
use super::{
    LayerTime, LoadError, SegmentReport, SessionError, SessionOptions, Slot, WorkerReport,
};
use crate::clock::Clock;
use crate::inference::delegate::{
    CompileError, CompiledSegment, Delegate, RunError, Seat, Segment, SegmentIo, WorkerStats,
};
use crate::inference::graph::{GraphView, NodeSet};
use crate::inference::tract::{self, TractSegment};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// For what is not given up: longer than any run takes.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Tensors at a segment's border that cost no allocation per frame.
const ON_STACK: usize = 16;

/// What is to be compiled; shared with the thread that builds a stand-in.
pub(super) struct Plan {
    pub source: Arc<Source>,
    pub nodes: NodeSet,
    pub io: SegmentIo,
    /// Of its nodes, in order.
    names: Vec<String>,
    macs: u64,
}

impl Plan {
    pub(super) fn new(
        source: Arc<Source>,
        view: &GraphView<'_>,
        nodes: NodeSet,
        io: SegmentIo,
    ) -> Arc<Self> {
        let names = nodes.iter().map(|node| view.node(node).name.clone()).collect();
        let macs = nodes.iter().map(|node| view.node(node).macs).sum();
        Arc::new(Self { source, nodes, io, names, macs })
    }

    /// Compiles for a delegate, or for tract. Panics become errors.
    pub(super) fn compile(
        &self,
        delegate: Option<&Arc<dyn Delegate>>,
    ) -> Result<Box<dyn CompiledSegment>, CompileError> {
        let graph = self.source.graph()?;
        let view = graph.view();
        let Some(delegate) = delegate else {
            let segment = TractSegment::compile(&view, &self.nodes, &self.io)?;
            return Ok(Box::new(segment));
        };
        let segment = Segment { graph: &view, nodes: &self.nodes, io: &self.io };
        let compiled = tract::catch(|| delegate.compile(&segment));
        let compiled = compiled.unwrap_or_else(|panic| Err(CompileError::Failed(panic)))?;
        if *compiled.io() == self.io {
            return Ok(compiled);
        }
        Err(CompileError::Failed(format!("other tensors than agreed: {:?}", compiled.io())))
    }

    pub(super) fn first_node(&self) -> String {
        self.names.first().cloned().unwrap_or_default()
    }
}

/// Comparison with the stand-in while frames flow.
struct Shadow {
    every: u32,
    closeness: Closeness,
    runs: u64,
    /// Room for one answer; empty where nobody runs apart.
    answers: Vec<Tensor>,
}

/// A segment that runs.
pub(super) struct Runner {
    plan: Arc<Plan>,
    /// In order of preference; the last is tract.
    alternatives: Vec<Alternative>,
    /// Where its inputs lie.
    reads: Vec<Slot>,
    /// Its outputs are the session's tensors from here on.
    first: usize,
    back_off: Duration,
    quarantine_after: u32,
    shadow: Shadow,
    current: usize,
    fallbacks: u64,
    last_error: Option<String>,
    last_run: Duration,
}

impl Runner {
    pub(super) fn load(
        plan: Arc<Plan>,
        delegates: Vec<Arc<dyn Delegate>>,
        options: &SessionOptions,
        reads: Vec<Slot>,
        first: usize,
    ) -> Result<Self, LoadError> {
        let mut alternatives: Vec<_> = delegates.into_iter().map(Alternative::of).collect();
        alternatives.push(Alternative::host());
        let mut runner = Self {
            plan,
            alternatives,
            reads,
            first,
            back_off: options.back_off,
            quarantine_after: options.quarantine_after.max(1),
            shadow: Shadow {
                every: options.shadow_every,
                closeness: options.closeness,
                runs: 0,
                answers: Vec::new(),
            },
            current: 0,
            fallbacks: 0,
            last_error: None,
            last_run: Duration::ZERO,
        };
        runner.load_first()?;
        Ok(runner)
    }

    /// Compiles the first alternative that takes the segment.
    fn load_first(&mut self) -> Result<(), LoadError> {
        let mut reasons = Vec::new();
        for place in 0..self.alternatives.len() {
            let alternative = &mut self.alternatives[place];
            match alternative.build_now(&self.plan) {
                Ok(()) => {
                    self.current = place;
                    if self.alternatives[place].seat() == Seat::Apart {
                        self.build_standby(place);
                    }
                    return Ok(());
                }
                Err(error) => {
                    let reason = format!("{}: {error}", alternative.name());
                    log::warn!("node={} {reason}", self.plan.first_node());
                    self.last_error = Some(reason.clone());
                    reasons.push(reason);
                }
            }
        }
        Err(LoadError::Segment { node: self.plan.first_node(), reason: reasons.join("; ") })
    }

    /// A process may die in any frame, which must not wait for its stand-in to be built.
    fn build_standby(&mut self, first: usize) {
        self.shadow.answers = self.plan.io.outputs.iter().cloned().map(Tensor::zeros).collect();
        for alternative in &mut self.alternatives[first + 1..] {
            let built = alternative.build_now(&self.plan);
            match built {
                Ok(()) if alternative.seat() == Seat::Inside => return,
                Ok(()) => {}
                Err(error) => {
                    log::warn!("node={} {}: {error}", self.plan.first_node(), alternative.name());
                }
            }
        }
    }

    /// Runs the first alternative that is able to.
    pub(super) fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        tensors: &mut [Tensor],
        clock: &dyn Clock,
        allowance: Duration,
        deadline: Instant,
    ) -> Result<(), SessionError> {
        let mut deadline = deadline;
        let mut building = false;
        for place in 0..self.alternatives.len() {
            let start = clock.now();
            match self.alternatives[place].readiness(&self.plan, start) {
                Readiness::Ready => {}
                Readiness::NotNow => continue,
                // Somebody later in the list may be there already.
                Readiness::Building if self.somebody_is_built(place) => {
                    building = true;
                    continue;
                }
                Readiness::Building => return Err(SessionError::NotReady),
                Readiness::Failed(reason) => {
                    self.last_error = Some(reason);
                    continue;
                }
                Readiness::Relapsed(reason) => {
                    self.failed(place, &RunError::Fault(reason), start);
                    continue;
                }
            }
            self.current = place;
            let patient = self.alternatives[place].may_be_late();
            let until = if patient { start + PATIENCE } else { deadline };
            let result = self.run_one(place, inputs, tensors, until);
            let end = clock.now();
            self.last_run = end.saturating_duration_since(start);
            let late = end > until;
            match result {
                Ok(()) => {
                    // A late answer is still right; the next frame goes to somebody faster.
                    match late {
                        true => self.failed(place, &RunError::DeadlineOverrun, end),
                        false => self.alternatives[place].succeeded(),
                    }
                    self.fallbacks += u64::from(place > 0);
                    self.compare_now_and_then(place, inputs, tensors, clock, allowance);
                    return Ok(());
                }
                Err(error) => self.failed(place, &error, end),
            }
            // The stand-in gets the time that the frame was given, not what is left of it.
            deadline = end + allowance;
        }
        if building {
            return Err(SessionError::NotReady);
        }
        let reason = self.last_error.clone().unwrap_or_else(|| "no alternative".to_owned());
        Err(SessionError::Failed { node: self.plan.first_node(), reason })
    }

    fn somebody_is_built(&mut self, place: usize) -> bool {
        self.alternatives[place + 1..].iter_mut().any(|other| other.segment().is_some())
    }

    /// The sampled shadow run: every so many runs of another process, its answer is compared with the stand-in's.
    fn compare_now_and_then(
        &mut self,
        place: usize,
        inputs: &[TensorView<'_>],
        tensors: &mut [Tensor],
        clock: &dyn Clock,
        allowance: Duration,
    ) {
        if self.shadow.every == 0 || self.alternatives[place].seat() == Seat::Inside {
            return;
        }
        self.shadow.runs += 1;
        if self.shadow.runs.is_multiple_of(u64::from(self.shadow.every)) {
            self.compare(place, inputs, tensors, clock.now() + allowance);
        }
    }

    /// Compares the answer of alternative `place`, which is in `tensors`, with that of the next one inside this process, and
    /// puts it aside when it is too far off. The stand-in's answer stays in `tensors`. Says whether the answer was wrong.
    fn compare(
        &mut self,
        place: usize,
        inputs: &[TensorView<'_>],
        tensors: &mut [Tensor],
        deadline: Instant,
    ) -> bool {
        let inside = |at: &usize| self.alternatives[*at].seat() == Seat::Inside;
        let Some(other) = (place + 1..self.alternatives.len()).find(inside) else { return false };
        if self.alternatives[other].segment().is_none() {
            return false;
        }
        let outputs = self.first..self.first + self.plan.io.outputs.len();
        for (answer, tensor) in self.shadow.answers.iter_mut().zip(&tensors[outputs.clone()]) {
            answer.copy_from(tensor);
        }
        if let Err(error) = self.run_one(other, inputs, tensors, deadline) {
            // The answer to be compared is still right as far as anybody knows.
            log::warn!("node={} stand-in: {error}", self.plan.first_node());
            for (answer, tensor) in self.shadow.answers.iter().zip(&mut tensors[outputs]) {
                tensor.copy_from(answer);
            }
            return false;
        }
        let closeness = self.alternatives[place].closeness().unwrap_or(self.shadow.closeness);
        let pairs = self.shadow.answers.iter().zip(&tensors[outputs]);
        let mut wrong = pairs.filter_map(|(answer, reference)| {
            let (answer, reference) = (answer.view().values, reference.view().values);
            closeness.violation(answer, reference)
        });
        let Some(wrong) = wrong.next() else { return false };
        self.alternatives[place].quarantine();
        let stand_in = self.alternatives[other].name().to_owned();
        let reason = format!("{}: is not {stand_in}: {wrong}", self.alternatives[place].name());
        log::error!("node={} state=quarantined {reason}", self.plan.first_node());
        self.last_error = Some(reason);
        self.current = other;
        true
    }

    /// Runs once. Whoever of another process fails is put aside for good; says how many were.
    pub(super) fn warm_up(
        &mut self,
        inputs: &[TensorView<'_>],
        tensors: &mut [Tensor],
        clock: &dyn Clock,
        allowance: Duration,
    ) -> Result<bool, SessionError> {
        self.run(inputs, tensors, clock, allowance, clock.now() + allowance)?;
        let place = self.current;
        let mut failed = false;
        for alternative in &mut self.alternatives[..place] {
            if alternative.seat() == Seat::Apart && alternative.has_failed() {
                alternative.quarantine();
                failed = true;
            }
        }
        Ok(failed)
    }

    /// Runs once, and compares if another process ran. Says whether that failed, or was wrong.
    pub(super) fn cross_check(
        &mut self,
        inputs: &[TensorView<'_>],
        tensors: &mut [Tensor],
        clock: &dyn Clock,
        allowance: Duration,
    ) -> Result<bool, SessionError> {
        let failed = self.warm_up(inputs, tensors, clock, allowance)?;
        let place = self.current;
        let wrong = self.alternatives[place].seat() == Seat::Apart
            && self.compare(place, inputs, tensors, clock.now() + allowance);
        Ok(failed || wrong)
    }

    fn run_one(
        &mut self,
        place: usize,
        inputs: &[TensorView<'_>],
        tensors: &mut [Tensor],
        deadline: Instant,
    ) -> Result<(), RunError> {
        self.run_current(place, inputs, tensors, deadline, None)
    }

    fn run_current(
        &mut self,
        place: usize,
        inputs: &[TensorView<'_>],
        tensors: &mut [Tensor],
        deadline: Instant,
        after: Option<&mut dyn FnMut(usize)>,
    ) -> Result<(), RunError> {
        let (before, from) = tensors.split_at_mut(self.first);
        let reads = self.reads.iter().map(|slot| view(*slot, inputs, before));
        let reads: SmallVec<[TensorView<'_>; ON_STACK]> = reads.collect();
        let writes = from[..self.plan.io.outputs.len()].iter_mut().map(Tensor::view_mut);
        let mut writes: SmallVec<[TensorViewMut<'_>; ON_STACK]> = writes.collect();
        let Some(segment) = self.alternatives[place].segment() else {
            return Err(RunError::Fault("it is not built".to_owned()));
        };
        let run = || match after {
            None => segment.run(&reads, &mut writes, deadline),
            Some(after) => segment.run_observed(&reads, &mut writes, deadline, after),
        };
        tract::catch(run).unwrap_or_else(|panic| Err(RunError::Fault(panic)))
    }

    fn failed(&mut self, place: usize, error: &RunError, now: Instant) {
        let alternative = &mut self.alternatives[place];
        let reason = format!("{}: {error}", alternative.name());
        let gone = alternative.failed(now, self.back_off, self.quarantine_after);
        let state = if gone { "quarantined" } else { "paused" };
        log::warn!("node={} state={state} {reason}", self.plan.first_node());
        self.last_error = Some(reason);
    }

    /// Runs the current alternative once and adds the time of each layer to `times`. Empty where it knows no layers.
    pub(super) fn profile(
        &mut self,
        inputs: &[TensorView<'_>],
        tensors: &mut [Tensor],
        clock: &dyn Clock,
    ) -> Result<Vec<LayerTime>, SessionError> {
        let layers = match self.alternatives[self.current].segment() {
            Some(segment) => segment.layers(),
            None => Vec::new(),
        };
        let time = |layer| LayerTime { layer, time: Duration::ZERO };
        let mut times: Vec<_> = layers.into_iter().map(time).collect();
        let mut last = clock.now();
        let mut after = |layer: usize| {
            let now = clock.now();
            if let Some(found) = times.get_mut(layer) {
                found.time = now.saturating_duration_since(last);
            }
            last = clock.now();
        };
        let deadline = clock.now() + PATIENCE;
        let ran = self.run_current(self.current, inputs, tensors, deadline, Some(&mut after));
        ran.map_err(|error| SessionError::Failed {
            node: self.plan.first_node(),
            reason: error.to_string(),
        })?;
        Ok(times)
    }

    /// Runs, compares with the host on the same inputs, and puts an alternative aside that is wrong.
    ///
    /// Says whether one was.
    pub(super) fn audit(
        &mut self,
        inputs: &[TensorView<'_>],
        tensors: &mut [Tensor],
        clock: &dyn Clock,
        tolerance: Tolerance,
    ) -> Result<bool, SessionError> {
        let allowance = Duration::from_secs(3600);
        let outputs = self.first..self.first + self.plan.io.outputs.len();
        let host = self.alternatives.len() - 1;
        self.run(inputs, tensors, clock, allowance, clock.now() + allowance)?;
        if self.current == host {
            return Ok(false);
        }
        let answers = tensors[outputs.clone()].to_vec();
        let failed = |runner: &Self, reason: String| SessionError::Failed {
            node: runner.plan.first_node(),
            reason,
        };
        if self.alternatives[host].segment().is_none() {
            let built = self.alternatives[host].build_now(&self.plan);
            built.map_err(|error| failed(self, error.to_string()))?;
        }
        let ran = self.run_one(host, inputs, tensors, clock.now() + allowance);
        ran.map_err(|error| failed(self, error.to_string()))?;
        let worst = answers.iter().zip(&tensors[outputs]).find_map(|(answer, reference)| {
            let apart = difference(answer.view().values, reference.view().values)?;
            (apart > tolerance.for_values(answer.view().values))
                .then(|| format!("`{}` is wrong by {apart}", answer.spec().name))
        });
        let Some(wrong) = worst else { return Ok(false) };
        let alternative = &mut self.alternatives[self.current];
        alternative.quarantine();
        let reason = format!("{}: failed the golden check: {wrong}", alternative.name());
        log::error!("node={} {reason}", self.plan.first_node());
        self.last_error = Some(reason);
        Ok(true)
    }

    /// Of the process that runs it now.
    pub(super) fn stats(&mut self) -> Option<WorkerStats> {
        self.alternatives[self.current].segment()?.stats()
    }

    /// The delegate that ran it last, or would run it now.
    pub(super) fn running(&self) -> &str {
        self.alternatives[self.current].name()
    }

    pub(super) fn report(&self, now: Instant) -> SegmentReport {
        let worker = |alternative: &Alternative| {
            let counts = alternative.workers()?;
            let delegate = alternative.name().to_owned();
            Some(WorkerReport { delegate, state: alternative.state(now), counts })
        };
        SegmentReport {
            delegate: self.running().to_owned(),
            nodes: self.plan.names.clone(),
            macs: self.plan.macs,
            fallbacks: self.fallbacks,
            last_error: self.last_error.clone(),
            last_run: self.last_run,
            workers: self.alternatives.iter().filter_map(worker).collect(),
        }
    }
}

fn view<'a>(slot: Slot, inputs: &[TensorView<'a>], tensors: &'a [Tensor]) -> TensorView<'a> {
    match slot {
        Slot::Input(place) => inputs[place],
        Slot::Tensor(place) => tensors[place].view(),
    }
}
