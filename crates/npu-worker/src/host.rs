//! A plug-in behind a safe interface. All calls through the C ABI are here.
//!
//! The ABI's promises are the plug-in's to keep: what it says is checked for size and null, the rest it can break, and
//! that is why it has a process of its own.

mod mapping;
mod table;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};
use std::slice;

use ocelli_delegate::abi::{self, Api, Status};
use ocelli_delegate::wire::{self, Compile, Failed};

pub use self::mapping::Mapping;
use self::table::Table;

/// Most devices, inputs or outputs looked at.
const MOST: u32 = 64;

/// A loaded plug-in with its context.
#[derive(Debug)]
pub struct Plugin {
    api: &'static Api,
    context: *mut c_void,
}

/// A compiled segment of a [`Plugin`].
#[derive(Debug)]
pub struct Executable<'a> {
    plugin: &'a Plugin,
    handle: *mut c_void,
    /// Kept while the executable lives: a plug-in may go on reading the model.
    _file: Option<Mapping>,
}

fn failed(status: Status, reason: impl Into<String>) -> Failed {
    Failed { status: number(status), reason: reason.into() }
}

fn number(status: Status) -> i32 {
    (1..=11).find(|number| Status::of(*number) == Some(status)).unwrap_or(11)
}

impl Plugin {
    /// Loads a library and creates its context.
    ///
    /// # Errors
    /// What the loader or the plug-in says.
    pub fn open(path: &str, options: &BTreeMap<String, String>) -> Result<Self, Failed> {
        let invalid = |what: &str| failed(Status::Invalid, format!("{path}: {what}"));
        let file = CString::new(path).map_err(|_| invalid("a path holds no NUL"))?;
        // SAFETY: a valid string; what the library's constructors do is the plug-in's part.
        let library = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            return Err(failed(Status::Unsupported, loader_error(path)));
        }
        // SAFETY: an open library and a valid name.
        let symbol = unsafe { libc::dlsym(library, abi::SYMBOL.as_ptr()) };
        if symbol.is_null() {
            return Err(invalid("is no plug-in: it does not export ocelli_delegate_get_api"));
        }
        // SAFETY: the symbol of this name has this type.
        let get_api: abi::GetApi = unsafe { std::mem::transmute(symbol) };
        // SAFETY: the function may be called at any time.
        let api = unsafe { get_api(abi::MAJOR) };
        // SAFETY: null or static storage, as the header says; the size is looked at first.
        let api = unsafe { api.as_ref() };
        let old = || failed(Status::Unsupported, format!("{path}: offers no ABI {}", abi::MAJOR));
        let api = api.filter(|api| api.abi_major == abi::MAJOR).ok_or_else(old)?;
        if (api.size as usize) < size_of::<Api>() {
            return Err(invalid("its function table is shorter than that of ABI 1.0"));
        }
        let complete = api.create.is_some()
            && api.destroy.is_some()
            && api.last_error.is_some()
            && api.device.is_some()
            && api.compile.is_some()
            && api.release.is_some()
            && api.io.is_some()
            && api.submit.is_some()
            && api.wait.is_some();
        if !complete {
            return Err(invalid("a function that may not be absent is null"));
        }
        let mut plugin = Self { api, context: null_mut() };
        let texts = |list: Vec<&String>| {
            let list = list.into_iter().map(|text| CString::new(text.as_str()));
            list.collect::<Result<Vec<_>, _>>().map_err(|_| invalid("an option holds a NUL"))
        };
        let (keys, values) = (texts(options.keys().collect())?, texts(options.values().collect())?);
        let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).collect::<Vec<_>>();
        let (keys_at, values_at) = (pointers(&keys), pointers(&values));
        let options = abi::Options {
            size: size_of::<abi::Options>() as u32,
            count: keys.len() as u32,
            keys: keys_at.as_ptr(),
            values: values_at.as_ptr(),
        };
        let create = api.create.expect("looked at above");
        // SAFETY: both live until the call returns.
        let status = unsafe { create(&options, &mut plugin.context) };
        plugin.check(status)?;
        Ok(plugin)
    }

    /// Its name and version.
    #[must_use]
    pub fn identity(&self) -> (String, String) {
        // SAFETY: static strings, or null.
        unsafe { (text(self.api.plugin_name), text(self.api.plugin_version)) }
    }

    /// Devices that are there.
    ///
    /// # Errors
    /// What the plug-in says when there is none.
    pub fn devices(&self) -> Result<Vec<wire::Device>, Failed> {
        let call = self.api.device.expect("looked at when opened");
        let mut devices = Vec::new();
        for index in 0..MOST {
            let mut device = MaybeUninit::<abi::Device>::zeroed();
            // SAFETY: all-zero bytes are a valid device.
            let device = unsafe { device.assume_init_mut() };
            device.size = size_of::<abi::Device>() as u32;
            device.tops = f32::NAN;
            // SAFETY: a device of the size that it says.
            match unsafe { call(self.context, index, device) } {
                0 => devices.push(describe(device)),
                status if devices.is_empty() => self.check(status)?,
                _ => break,
            }
        }
        Ok(devices)
    }

    /// A byte for each node of the graph, 1 where it is accepted. `file` holds the constants.
    ///
    /// # Errors
    /// What the plug-in says, or what is wrong with the graph.
    pub fn supports(
        &self,
        device: u32,
        graph: &wire::Graph,
        file: &[u8],
    ) -> Result<Vec<u8>, Failed> {
        let Some(call) = self.api.supports else { return Ok(vec![0; graph.nodes.len()]) };
        let table = Table::new(graph, file).map_err(|what| failed(Status::Invalid, what))?;
        let mut accepts = vec![0; graph.nodes.len()];
        // SAFETY: the table and what it points to live until the call returns; `accepts` has a byte for each node.
        let status = unsafe { call(self.context, device, table.as_ptr(), accepts.as_mut_ptr()) };
        self.check(status).map(|()| accepts)
    }

    /// Compiles a segment or loads a blob that lies in `file`.
    ///
    /// # Errors
    /// What the plug-in says, or what is wrong with the request.
    pub fn compile(
        &self,
        what: &Compile,
        graph: Option<&wire::Graph>,
        cache_dir: Option<&str>,
        file: Mapping,
    ) -> Result<Executable<'_>, Failed> {
        let invalid = |what: String| failed(Status::Invalid, what);
        let table = graph.map(|graph| Table::new(graph, file.bytes())).transpose();
        let table = table.map_err(invalid)?;
        let model = part(file.bytes(), what.model);
        let model = model.ok_or_else(|| invalid("the model is not in the file".to_owned()))?;
        let c_text = |text: Option<&str>| text.and_then(|text| CString::new(text).ok());
        let (toolchain, cache_dir) = (c_text(what.toolchain.as_deref()), c_text(cache_dir));
        let or_null = |text: &Option<CString>| text.as_ref().map_or(null(), |text| text.as_ptr());
        let source = abi::Source {
            size: size_of::<abi::Source>() as u32,
            kind: if what.blob { 2 } else { 1 },
            data: model.as_ptr().cast(),
            n_bytes: model.len() as u64,
            graph: table.as_ref().map_or(null(), Table::as_ptr),
            toolchain: or_null(&toolchain),
            cache_dir: or_null(&cache_dir),
            preference: 0,
            reserved: 0,
        };
        let call = self.api.compile.expect("looked at when opened");
        let mut handle = null_mut();
        // SAFETY: all that `source` points to lives until the call returns.
        let status = unsafe { call(self.context, what.device, &source, &mut handle) };
        self.check(status)?;
        if handle.is_null() {
            return Err(failed(Status::Internal, "compile said it went well and gave nothing"));
        }
        Ok(Executable { plugin: self, handle, _file: Some(file) })
    }

    /// How a device is; `None` where the plug-in does not tell.
    #[must_use]
    pub fn stats(&self, device: u32) -> Option<wire::Stats> {
        let call = self.api.stats?;
        let mut stats = abi::Stats {
            size: size_of::<abi::Stats>() as u32,
            reserved: 0,
            last_run_ns: 0,
            memory_bytes: 0,
            temperature_celsius: f32::NAN,
            power_watt: f32::NAN,
            frequency_mhz: f32::NAN,
            utilisation: f32::NAN,
        };
        // SAFETY: stats of the size that they say.
        let status = unsafe { call(self.context, device, &mut stats) };
        let known = |value: f32| value.is_finite().then_some(value);
        (status == 0).then(|| wire::Stats {
            last_run_ns: stats.last_run_ns,
            memory_bytes: stats.memory_bytes,
            temperature_celsius: known(stats.temperature_celsius),
            power_watt: known(stats.power_watt),
            frequency_mhz: known(stats.frequency_mhz),
            utilisation: known(stats.utilisation),
            worker_rss_bytes: 0,
        })
    }

    fn check(&self, status: i32) -> Result<(), Failed> {
        if status == 0 {
            return Ok(());
        }
        let call = self.api.last_error.expect("looked at when opened");
        let reason = if self.context.is_null() {
            String::new()
        } else {
            // SAFETY: a context of this plug-in; the text is valid until the next call.
            unsafe { text(call(self.context)) }
        };
        Err(Failed { status, reason })
    }
}

impl Executable<'_> {
    /// Its tensors: inputs, outputs.
    ///
    /// # Errors
    /// When it describes them in a way that makes no sense.
    pub fn io(&self) -> Result<[Vec<wire::Tensor>; 2], Failed> {
        let call = self.plugin.api.io.expect("looked at when opened");
        let mut both = [Vec::new(), Vec::new()];
        for (direction, tensors) in both.iter_mut().enumerate() {
            for index in 0..MOST {
                let mut tensor = null();
                // SAFETY: an executable of this plug-in.
                let status = unsafe { call(self.handle, direction as u32, index, &mut tensor) };
                if status != 0 {
                    break;
                }
                // SAFETY: a tensor that is valid as long as the executable, or null.
                let tensor = unsafe { tensor.as_ref() };
                let read = tensor.and_then(table::read_tensor);
                tensors.push(read.ok_or_else(|| {
                    failed(Status::Invalid, "it describes a tensor that cannot be")
                })?);
            }
        }
        Ok(both)
    }

    /// Runs once on tensors at these places of the memory.
    ///
    /// # Errors
    /// What the plug-in says.
    pub fn run(&self, memory: &Mapping, io: &Io, timeout_ns: u64) -> Result<(), Failed> {
        let api = self.plugin.api;
        let (submit, wait) = (api.submit, api.wait);
        let (submit, wait) = submit.zip(wait).expect("looked at when opened");
        let buffer = |(at, n_bytes): &(u64, u64)| abi::Buffer {
            size: size_of::<abi::Buffer>() as u32,
            fd: memory.fd(),
            data: memory.at(*at, *n_bytes),
            offset: *at,
            n_bytes: *n_bytes,
        };
        let buffers: Vec<_> = io.inputs.iter().chain(&io.outputs).map(buffer).collect();
        if buffers.iter().any(|buffer| buffer.data.is_null()) {
            return Err(failed(Status::Invalid, "a tensor is not in the memory"));
        }
        let pointers: Vec<*const abi::Buffer> = buffers.iter().map(|one| &raw const *one).collect();
        let (inputs, outputs) = pointers.split_at(io.inputs.len());
        let mut ticket = 0;
        // SAFETY: the buffers describe parts of the mapping, which outlives the run.
        let status = unsafe {
            submit(
                self.handle,
                inputs.as_ptr(),
                inputs.len() as u32,
                outputs.as_ptr(),
                outputs.len() as u32,
                &mut ticket,
            )
        };
        self.plugin.check(status)?;
        // SAFETY: an executable of this plug-in and a ticket that it gave.
        self.plugin.check(unsafe { wait(self.handle, ticket, timeout_ns) })
    }

    /// The compiled form; `None` where the plug-in has none.
    ///
    /// # Errors
    /// What the plug-in says.
    pub fn export(&self) -> Result<Option<Vec<u8>>, Failed> {
        let Some(call) = self.plugin.api.export_blob else { return Ok(None) };
        let mut n_bytes = 0;
        // SAFETY: without a buffer, only the length is written.
        self.plugin.check(unsafe { call(self.handle, null_mut(), &mut n_bytes) })?;
        let mut blob = vec![0_u8; usize::try_from(n_bytes).unwrap_or(0)];
        // SAFETY: the buffer has room for `n_bytes`.
        self.plugin.check(unsafe { call(self.handle, blob.as_mut_ptr().cast(), &mut n_bytes) })?;
        blob.truncate(usize::try_from(n_bytes).unwrap_or(0));
        Ok(Some(blob))
    }
}

impl Drop for Executable<'_> {
    fn drop(&mut self) {
        if let Some(release) = self.plugin.api.release {
            // SAFETY: an executable of this plug-in, not used afterwards.
            unsafe { release(self.handle) };
        }
    }
}

/// Where the tensors of a run lie in its memory: offset and bytes.
#[derive(Debug, Clone, Default)]
pub struct Io {
    /// In the order of the executable.
    pub inputs: Vec<(u64, u64)>,
    /// The same.
    pub outputs: Vec<(u64, u64)>,
}

impl Io {
    /// One after the other, and the bytes of it all.
    #[must_use]
    pub fn of(inputs: &[wire::Tensor], outputs: &[wire::Tensor]) -> (Self, u64) {
        let sizes: Vec<_> = inputs.iter().chain(outputs).map(|tensor| tensor.n_bytes).collect();
        let (places, n_bytes) = wire::places(sizes.iter().copied());
        let mut pairs: Vec<_> = places.into_iter().zip(sizes).collect();
        let outputs = pairs.split_off(inputs.len());
        (Self { inputs: pairs, outputs }, n_bytes)
    }
}

/// A part of a file.
pub(crate) fn part(file: &[u8], part: wire::Part) -> Option<&[u8]> {
    let at = usize::try_from(part.at).ok()?;
    file.get(at..at.checked_add(usize::try_from(part.n_bytes).ok()?)?)
}

fn describe(device: &abi::Device) -> wire::Device {
    let fixed = |field: &[c_char; 64]| {
        // `c_char` has a sign on x86 and none on ARM.
        let bytes = field.iter().map(|byte| byte.to_ne_bytes()[0]).take_while(|byte| *byte != 0);
        String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
    };
    wire::Device {
        name: fixed(&device.name),
        vendor: fixed(&device.vendor),
        target: fixed(&device.target),
        driver: fixed(&device.driver),
        runtime: fixed(&device.runtime),
        cores: device.cores,
        simulated: device.capabilities & 1 != 0,
        online_compile: device.capabilities & 2 != 0,
        blob: device.capabilities & 4 != 0,
        tops: device.tops.is_finite().then_some(device.tops),
    }
}

/// # Safety
/// `pointer` is null or a string that ends in NUL and stays as it is during the call.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

fn loader_error(path: &str) -> String {
    // SAFETY: the text is valid until the next call of the loader on this thread.
    let said = unsafe { text(libc::dlerror()) };
    if said.is_empty() { format!("{path}: cannot be loaded") } else { said }
}

/// # Safety
/// `pointer` is null, or points to `count` values that stay as they are during the call.
unsafe fn list<T: Copy>(pointer: *const T, count: u32) -> Option<Vec<T>> {
    if count == 0 {
        return Some(Vec::new());
    }
    if pointer.is_null() || count > 1 << 20 {
        return None;
    }
    // SAFETY: as the caller says.
    Some(unsafe { slice::from_raw_parts(pointer, count as usize) }.to_vec())
}
