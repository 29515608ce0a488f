//! The header compiles without a warning as C and C++, the plug-ins too and they run, and Rust sees each struct as the C
//! compiler does.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use ocelli_delegate::abi;

const STRICT: &[&str] = &["-Wall", "-Wextra", "-Werror", "-pedantic"];

fn crate_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn compile(compiler: &str, arguments: &[&str], source: &Path, output: &Path) {
    let include = crate_file("include");
    let mut command = Command::new(compiler);
    command.args(STRICT).args(arguments).arg("-I").arg(include).arg(source).arg("-o").arg(output);
    command.args(["-lm", "-ldl"]);
    let done = command.output().unwrap_or_else(|error| panic!("{compiler}: {error}; install it"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// A plug-in as its users build it.
fn shared(source: &Path, library: &Path) {
    compile("cc", &["-std=c11", "-shared", "-fPIC", "-fvisibility=hidden"], source, library);
}

/// `struct.field offset` and `struct size` for every field listed.
macro_rules! layout {
    ($($rust:ident $c:literal { $($field:ident)* })*) => {
        [$(
            ($c, size_of::<abi::$rust>(), vec![$((stringify!($field), offset_of!(abi::$rust, $field))),*]),
        )*]
    };
}

#[test]
fn rust_sees_the_structs_as_the_c_compiler_does() {
    let layout = layout! {
        Tensor "ocelli_tensor" { size dtype rank layout dims name quant axis n_scales reserved scale zero_point n_bytes data }
        Attribute "ocelli_attribute" { size kind name i f count ints floats text }
        Node "ocelli_node" { size arithmetic op name n_inputs n_outputs inputs outputs attributes n_attributes clip_min clip_max reserved macs }
        Graph "ocelli_graph" { size opset n_tensors n_nodes n_inputs n_outputs tensors nodes inputs outputs }
        Options "ocelli_options" { size count keys values }
        Source "ocelli_source" { size kind data n_bytes graph toolchain cache_dir preference reserved }
        Device "ocelli_device" { size cores name vendor target driver runtime capabilities tops reserved }
        Buffer "ocelli_buffer" { size fd data offset n_bytes }
        Stats "ocelli_stats" { size reserved last_run_ns memory_bytes temperature_celsius power_watt frequency_mhz utilisation }
        LayerTime "ocelli_layer_time" { size reserved name ns }
        Api "ocelli_delegate_api" { size abi_major abi_minor reserved plugin_name plugin_version create destroy last_error device supports
            compile release io submit wait cancel export_blob stats profile reset }
    };
    let mut source = String::from(
        "#include \"ocelli_delegate.h\"\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n",
    );
    let mut expected = String::new();
    for (name, size, fields) in &layout {
        writeln!(source, "printf(\"{name} %zu\\n\", sizeof({name}));").unwrap();
        writeln!(expected, "{name} {size}").unwrap();
        for (field, offset) in fields {
            writeln!(source, "printf(\"{name}.{field} %zu\\n\", offsetof({name}, {field}));")
                .unwrap();
            writeln!(expected, "{name}.{field} {offset}").unwrap();
        }
    }
    source.push_str("return 0; }\n");
    let folder = tempfile::tempdir().unwrap();
    let (file, program) = (folder.path().join("layout.c"), folder.path().join("layout"));
    std::fs::write(&file, source).unwrap();
    compile("cc", &["-std=c11"], &file, &program);
    let said = Command::new(&program).output().unwrap();
    assert_eq!(String::from_utf8(said.stdout).unwrap(), expected);
}

#[test]
fn the_rust_mirror_lists_every_field_of_the_header() {
    let header = std::fs::read_to_string(crate_file("include/ocelli_delegate.h")).unwrap();
    let header: String = header
        .split("/*")
        .map(|part| part.split_once("*/").map_or(part, |(_comment, code)| code))
        .collect();
    let mirror = std::fs::read_to_string(crate_file("src/abi.rs")).unwrap();
    // Each declared field ends in `;`; enums and forward declarations have no body with fields.
    let bodies = header.split("typedef struct ").skip(1).filter_map(|rest| {
        let (head, tail) = rest.split_once('{')?;
        (!head.contains(';')).then(|| tail.split_once('}').expect("a closed struct").0)
    });
    let count: usize = bodies.map(|body| body.matches(';').count()).sum();
    let field = |line: &&str| line.starts_with("    pub ") && !line.starts_with("    pub fn ");
    assert_eq!(mirror.lines().filter(field).count(), count);
}

#[test]
fn the_header_is_also_cplusplus() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("header.cc");
    std::fs::write(&file, "#include \"ocelli_delegate.h\"\nint main() { return OCELLI_OK; }\n")
        .unwrap();
    let program = folder.path().join("header");
    compile("c++", &["-std=c++11"], &file, &program);
    assert!(Command::new(&program).status().unwrap().success());
}

#[test]
fn every_plugin_compiles_without_a_warning_and_exports_one_symbol() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(crate_file("plugins")).unwrap() {
        let source = entry.unwrap().path();
        if source.extension().is_none_or(|extension| extension != "c") {
            continue;
        }
        seen += 1;
        let library = folder.path().join(source.file_stem().unwrap()).with_extension("so");
        shared(&source, &library);
        let symbols = Command::new("nm").arg("-D").arg("--defined-only").arg(&library).output();
        let symbols = String::from_utf8(symbols.expect("nm comes with cc").stdout).unwrap();
        let ours: Vec<_> = symbols.lines().filter_map(|line| line.split(' ').next_back()).collect();
        assert_eq!(ours, ["ocelli_delegate_get_api"], "{}", source.display());
    }
    assert!(seen >= 2, "{seen} plug-ins");
}

#[test]
fn plugins_run_a_relu_for_the_least_host_there_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().join("host");
    compile("cc", &["-std=c11"], &crate_file("tests/host.c"), &host);
    for (name, device) in [("relu", "example on the CPU"), ("ref", "scalar reference")] {
        let library = folder.path().join(name).with_extension("so");
        shared(&crate_file("plugins").join(name).with_extension("c"), &library);
        let said = Command::new(&host).arg(&library).output().unwrap();
        let expected = format!(
            "device {device}\naccepts 1 0\nblob 4\nio x 1 2 24\nio y 1 2 24\nrun 0 0 0 0.5 1 3\n"
        );
        assert_eq!(String::from_utf8(said.stdout).unwrap(), expected, "{name}");
        assert!(said.status.success(), "{name}");
    }
}
