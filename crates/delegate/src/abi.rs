//! The plug-in ABI in Rust: the same structs as `include/ocelli_delegate.h`, field by field. The header has the meaning.
//!
//! `tests/layout.rs` compares every size and offset with what a C compiler says; the assertions at the end hold them at
//! compile time for each pointer width.

use std::ffi::{c_char, c_void};

/// `OCELLI_DELEGATE_ABI_MAJOR`
pub const MAJOR: u32 = 1;
/// `OCELLI_DELEGATE_ABI_MINOR`
pub const MINOR: u32 = 0;
/// The exported symbol.
pub const SYMBOL: &std::ffi::CStr = c"ocelli_delegate_get_api";
/// `OCELLI_NO_TENSOR`
pub const NO_TENSOR: u32 = u32::MAX;

/// `ocelli_tensor`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Tensor {
    pub size: u32,
    pub dtype: u32,
    pub rank: u32,
    pub layout: u32,
    pub dims: *const i64,
    pub name: *const c_char,
    pub quant: u32,
    pub axis: i32,
    pub n_scales: u32,
    pub reserved: u32,
    pub scale: *const f32,
    pub zero_point: *const i32,
    pub n_bytes: u64,
    pub data: *const c_void,
}

/// `ocelli_attribute`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Attribute {
    pub size: u32,
    pub kind: u32,
    pub name: *const c_char,
    pub i: i64,
    pub f: f32,
    pub count: u32,
    pub ints: *const i64,
    pub floats: *const f32,
    pub text: *const c_char,
}

/// `ocelli_node`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Node {
    pub size: u32,
    pub arithmetic: u32,
    pub op: *const c_char,
    pub name: *const c_char,
    pub n_inputs: u32,
    pub n_outputs: u32,
    pub inputs: *const u32,
    pub outputs: *const u32,
    pub attributes: *const *const Attribute,
    pub n_attributes: u32,
    pub clip_min: f32,
    pub clip_max: f32,
    pub reserved: u32,
    pub macs: u64,
}

/// `ocelli_graph`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Graph {
    pub size: u32,
    pub opset: u32,
    pub n_tensors: u32,
    pub n_nodes: u32,
    pub n_inputs: u32,
    pub n_outputs: u32,
    pub tensors: *const *const Tensor,
    pub nodes: *const *const Node,
    pub inputs: *const u32,
    pub outputs: *const u32,
}

/// `ocelli_options`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Options {
    pub size: u32,
    pub count: u32,
    pub keys: *const *const c_char,
    pub values: *const *const c_char,
}

/// `ocelli_source`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Source {
    pub size: u32,
    pub kind: u32,
    pub data: *const c_void,
    pub n_bytes: u64,
    pub graph: *const Graph,
    pub toolchain: *const c_char,
    pub cache_dir: *const c_char,
    pub preference: u32,
    pub reserved: u32,
}

/// `ocelli_device`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Device {
    pub size: u32,
    pub cores: u32,
    pub name: [c_char; 64],
    pub vendor: [c_char; 64],
    pub target: [c_char; 64],
    pub driver: [c_char; 64],
    pub runtime: [c_char; 64],
    pub capabilities: u64,
    pub tops: f32,
    pub reserved: u32,
}

/// `ocelli_buffer`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Buffer {
    pub size: u32,
    pub fd: i32,
    pub data: *mut c_void,
    pub offset: u64,
    pub n_bytes: u64,
}

/// `ocelli_stats`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Stats {
    pub size: u32,
    pub reserved: u32,
    pub last_run_ns: u64,
    pub memory_bytes: u64,
    pub temperature_celsius: f32,
    pub power_watt: f32,
    pub frequency_mhz: f32,
    pub utilisation: f32,
}

/// `ocelli_layer_time`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct LayerTime {
    pub size: u32,
    pub reserved: u32,
    pub name: *const c_char,
    pub ns: u64,
}

/// `ocelli_delegate_api`. Function pointers that may be null are options.
#[repr(C)]
#[derive(Debug)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Api {
    pub size: u32,
    pub abi_major: u32,
    pub abi_minor: u32,
    pub reserved: u32,
    pub plugin_name: *const c_char,
    pub plugin_version: *const c_char,
    pub create: Option<unsafe extern "C" fn(*const Options, *mut *mut c_void) -> i32>,
    pub destroy: Option<unsafe extern "C" fn(*mut c_void)>,
    pub last_error: Option<unsafe extern "C" fn(*mut c_void) -> *const c_char>,
    pub device: Option<unsafe extern "C" fn(*mut c_void, u32, *mut Device) -> i32>,
    pub supports: Option<unsafe extern "C" fn(*mut c_void, u32, *const Graph, *mut u8) -> i32>,
    pub compile:
        Option<unsafe extern "C" fn(*mut c_void, u32, *const Source, *mut *mut c_void) -> i32>,
    pub release: Option<unsafe extern "C" fn(*mut c_void)>,
    pub io: Option<unsafe extern "C" fn(*mut c_void, u32, u32, *mut *const Tensor) -> i32>,
    pub submit: Option<
        unsafe extern "C" fn(
            *mut c_void,
            *const *const Buffer,
            u32,
            *const *const Buffer,
            u32,
            *mut u64,
        ) -> i32,
    >,
    pub wait: Option<unsafe extern "C" fn(*mut c_void, u64, u64) -> i32>,
    pub cancel: Option<unsafe extern "C" fn(*mut c_void, u64) -> i32>,
    pub export_blob: Option<unsafe extern "C" fn(*mut c_void, *mut c_void, *mut u64) -> i32>,
    pub stats: Option<unsafe extern "C" fn(*mut c_void, u32, *mut Stats) -> i32>,
    pub profile: Option<unsafe extern "C" fn(*mut c_void, u32, *mut LayerTime) -> i32>,
    pub reset: Option<unsafe extern "C" fn(*mut c_void, u32) -> i32>,
}

/// `ocelli_delegate_get_api`
pub type GetApi = unsafe extern "C" fn(u32) -> *const Api;

/// What a plug-in's status number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each status")]
pub enum Status {
    Unsupported,
    Invalid,
    NoDevice,
    ModelRejected,
    BlobStale,
    OutOfMemory,
    Busy,
    TimedOut,
    DeviceLost,
    Cancelled,
    /// Also any number that this version does not know.
    Internal,
}

impl Status {
    /// `None`: `OCELLI_OK`.
    #[must_use]
    pub fn of(number: i32) -> Option<Self> {
        Some(match number {
            0 => return None,
            1 => Self::Unsupported,
            2 => Self::Invalid,
            3 => Self::NoDevice,
            4 => Self::ModelRejected,
            5 => Self::BlobStale,
            6 => Self::OutOfMemory,
            7 => Self::Busy,
            8 => Self::TimedOut,
            9 => Self::DeviceLost,
            10 => Self::Cancelled,
            _ => Self::Internal,
        })
    }

    /// For people, without the reason.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::Invalid => "invalid argument",
            Self::NoDevice => "no device",
            Self::ModelRejected => "model rejected",
            Self::BlobStale => "compiled for another device, driver or runtime version",
            Self::OutOfMemory => "out of memory",
            Self::Busy => "device is busy",
            Self::TimedOut => "timed out",
            Self::DeviceLost => "device lost",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal error",
        }
    }
}

/// Size of each struct with 8-byte (x86_64, aarch64) and 4-byte (armv7) pointers.
macro_rules! held {
    ($($name:ty: $wide:literal, $narrow:literal;)*) => {
        $(const _: () = {
            let size = if size_of::<usize>() == 8 { $wide } else { $narrow };
            assert!(size_of::<$name>() == size);
        };)*
    };
}

held! {
    Tensor: 80, 64;
    Attribute: 56, 48;
    Node: 80, 64;
    Graph: 56, 40;
    Options: 24, 16;
    Source: 56, 48;
    Device: 344, 344;
    Buffer: 32, 32;
    Stats: 40, 40;
    LayerTime: 24, 24;
    Api: 152, 84;
}
