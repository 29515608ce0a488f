//! Tests of the graph: one form for QDQ and QOperator, and what is refused.

use crate::inference::graph::proto::tensor_shape_proto::dimension::Value as Dimension;
use crate::inference::graph::proto::{
    ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, type_proto,
};

use super::*;
use crate::inference::session::{LoadError, Session, SessionOptions};
use crate::inference::testing::{bytes, float_model, model, qdq_model};

fn parse(model: &ModelProto) -> Result<Graph, GraphError> {
    Graph::parse(&bytes(model), &Limits::default())
}

#[test]
fn folds_qdq_around_its_operators() {
    let graph = parse(&qdq_model()).expect("it parses");
    let view = graph.view();
    let ops: Vec<_> = view.nodes().iter().map(|node| node.op.as_str()).collect();
    assert_eq!(ops, ["QuantizeLinear", "Conv", "Add", "Sigmoid", "DequantizeLinear"]);
    let conv = view.node(1);
    assert_eq!(conv.arithmetic, Arithmetic::Quantised);
    assert_eq!(conv.activation, Some(Activation { min: 0.0, max: f32::INFINITY }));
    let [x, w, b] = [0, 1, 2].map(|place| view.tensor(conv.input(place).expect("an input")));
    assert_eq!((x.name.as_str(), x.element), ("xq", Some(ElementType::U8)));
    assert_eq!((w.name.as_str(), w.element), ("wq", Some(ElementType::I8)));
    assert_eq!((b.name.as_str(), b.element), ("bq", Some(ElementType::I32)));
    let found = w.quantisation.as_ref().expect("weights are quantised");
    assert_eq!((found.axis, found.scales.as_slice()), (Some(0), &[0.003, 0.004][..]));
    let y = view.tensor(conv.output().expect("an output"));
    assert_eq!((y.name.as_str(), y.shape.as_slice()), ("cq", &[1, 2, 5, 6][..]));
    assert_eq!(conv.macs, 2 * 30 * 18);
    assert_eq!(view.predecessors(2).collect::<Vec<_>>(), [1, 0]);
}

#[test]
fn a_slice_of_a_graph_is_a_file_that_gives_the_same_graph() {
    use crate::inference::delegate::SegmentIo;
    let graph = parse(&qdq_model()).expect("it parses");
    let view = graph.view();
    let spec = |tensors: &[TensorId]| {
        tensors.iter().filter_map(|tensor| view.tensor(*tensor).spec()).collect()
    };
    let io = SegmentIo { inputs: spec(view.inputs()), outputs: spec(view.outputs()) };
    let written = slice(&view, &(0..view.nodes().len()).collect(), &io);
    let again = Graph::parse(&written, &Limits::default()).expect("our own file");
    let summary = |view: GraphView<'_>| -> Vec<_> {
        let node = |node: &Node| {
            let tensors = node.inputs.iter().chain(&node.outputs).flatten();
            let tensors = tensors.map(|tensor| view.tensor(*tensor));
            let tensors = tensors.filter(|tensor| tensor.shape.len() == 4);
            let tensors = tensors.map(|tensor| (tensor.name.clone(), tensor.quantisation.clone()));
            (node.op.clone(), node.arithmetic, tensors.collect::<Vec<_>>())
        };
        view.nodes().iter().map(node).collect()
    };
    assert_eq!(summary(again.view()), summary(view));
}

#[test]
fn a_symbolic_batch_is_one_and_other_symbols_are_refused() {
    let with = |place: usize, value: Option<Dimension>| {
        let mut model = float_model();
        let input = &mut model.graph.as_mut().expect("a graph").input[0];
        let found = input.r#type.as_mut().and_then(|found| found.value.as_mut());
        let Some(type_proto::Value::TensorType(tensor)) = found else { panic!("no tensor") };
        tensor.shape.as_mut().expect("a shape").dim[place].value = value;
        parse(&model)
    };
    let symbol = || Some(Dimension::DimParam("N".to_owned()));
    for batch in [symbol(), None, Some(Dimension::DimValue(0))] {
        let graph = with(0, batch).expect("a batch of one");
        assert_eq!(graph.view().tensor(graph.view().inputs()[0]).shape, [1, 2, 5, 6]);
    }
    let error = with(2, symbol()).expect_err("a symbol");
    assert!(matches!(error, GraphError::DynamicShape(_)), "{error}");
    assert_eq!(
        error.to_string(),
        "dimension 2 of input `input` is `N`; export the model with static shapes"
    );
    let error = with(2, Some(Dimension::DimValue(-3))).expect_err("negative");
    assert!(matches!(error, GraphError::DynamicShape(_)), "{error}");
}

fn broken(change: impl FnOnce(&mut ModelProto)) -> ModelProto {
    let mut model = float_model();
    change(&mut model);
    model
}

fn nodes(model: &mut ModelProto) -> &mut Vec<NodeProto> {
    &mut model.graph.as_mut().expect("a graph").node
}

#[test]
fn refuses_what_it_does_not_run_and_says_why() {
    let initializer = |model: &mut ModelProto, change: fn(&mut TensorProto)| {
        change(&mut model.graph.as_mut().expect("a graph").initializer[0]);
    };
    let cases: Vec<(&str, ModelProto, &str)> = vec![
        ("cycle", broken(|model| nodes(model)[0].input[0] = "sum".into()), "depends on itself"),
        (
            "dangling",
            broken(|model| nodes(model)[1].input[0] = "nowhere".into()),
            "which nothing writes",
        ),
        ("twice", broken(|model| nodes(model)[1].output[0] = "conv".into()), "written twice"),
        ("domain", broken(|model| nodes(model)[1].domain = "acme".into()), "domain `acme`"),
        (
            "operator",
            broken(|model| nodes(model)[1].op_type = "NonMaxSuppression".into()),
            "not among those",
        ),
        (
            "opset",
            broken(|model| {
                model.opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 99 }]
            }),
            "operator set 99",
        ),
        ("no opset", broken(|model| model.opset_import.clear()), "no operator set"),
        ("no graph", broken(|model| model.graph = None), "no graph"),
        (
            "output",
            broken(|model| model.graph.as_mut().expect("a graph").output.clear()),
            "no output",
        ),
        (
            "nested",
            broken(|model| {
                let graph = AttributeProto {
                    g: Some(Box::default()).map(|found: Box<_>| *found),
                    ..AttributeProto::default()
                };
                nodes(model)[1].attribute.push(graph);
            }),
            "a graph of its own",
        ),
        (
            "external",
            broken(|model| {
                initializer(model, |tensor| {
                    tensor.external_data = vec![StringStringEntryProto {
                        key: "location".into(),
                        value: "/etc/passwd".into(),
                    }];
                })
            }),
            "lies in another file",
        ),
        (
            "huge",
            broken(|model| initializer(model, |tensor| tensor.dims = vec![1 << 40, 1 << 40])),
            "number of elements of initializer `w`",
        ),
        (
            "overflow",
            broken(|model| initializer(model, |tensor| tensor.dims = vec![i64::MAX; 6])),
            "number of elements of initializer `w`",
        ),
        (
            "short",
            broken(|model| {
                initializer(model, |tensor| {
                    tensor.raw_data.pop();
                })
            }),
            "incomplete",
        ),
        (
            "rank",
            broken(|model| initializer(model, |tensor| tensor.dims = vec![1; 30])),
            "number of dimensions",
        ),
        (
            "negative",
            broken(|model| initializer(model, |tensor| tensor.dims[0] = -1)),
            "negative dimension",
        ),
        (
            "channels",
            broken(|model| initializer(model, |tensor| tensor.dims = vec![2, 18, 1, 1])),
            "weights [2, 18, 1, 1]",
        ),
    ];
    let mut wrong = Vec::new();
    for (name, model, expected) in cases {
        match parse(&model) {
            Ok(_) => wrong.push(format!("{name}: accepted")),
            Err(error) if error.to_string().contains(expected) => {}
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn refuses_computed_tensors_beyond_the_caps() {
    let grow = model(&[1, 1, 4, 4], &[1], |encoder| {
        encoder.constant("times", &[4], &TensorBuffer::I64(vec![1, 1, 1 << 30, 1 << 30]));
        encoder.node("Tile", &["input", "times"], &["output"], vec![]);
    });
    let error = parse(&grow).expect_err("2^64 elements");
    assert!(matches!(error, GraphError::TooLarge { .. }), "{error}");
    let limits = Limits { nodes: 3, ..Limits::default() };
    let error = Graph::parse(&bytes(&float_model()), &limits).expect_err("4 nodes");
    assert_eq!(error.to_string(), "number of nodes is 4, at most 3 are allowed");
    let limits = Limits { model_bytes: 10, ..Limits::default() };
    let error = Graph::parse(&bytes(&float_model()), &limits).expect_err("more than 10 bytes");
    assert!(matches!(error, GraphError::TooLarge { .. }), "{error}");
    let many = [0x3a, 0x04, 0x0a, 0x00, 0x0a, 0x00].repeat(300_000);
    let error = Graph::parse(&many, &Limits::default()).expect_err("a million empty nodes");
    assert!(error.to_string().contains("number of fields"), "{error}");
}

#[test]
fn every_truncated_file_is_refused_without_a_panic() {
    for whole in [bytes(&float_model()), bytes(&qdq_model())] {
        for end in 0..whole.len() {
            // A cut between two fields of the model itself leaves a smaller file that is whole; its parts are missing.
            assert!(Graph::parse(&whole[..end], &Limits::default()).is_err(), "{end} bytes");
        }
    }
}

/// Seeded faults in a file.
struct Mutator(u64);

impl Mutator {
    fn random(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % below
    }

    /// One to three faults at places that `place` chooses.
    fn mutate(&mut self, whole: &[u8], place: impl Fn(&mut Self, usize) -> usize) -> Vec<u8> {
        let mut file = whole.to_vec();
        for _ in 0..=self.random(3) {
            let at = place(self, file.len());
            match self.random(3) {
                0 => file[at] ^= 1 << self.random(8),
                1 => file[at] = [0, 1, 0x7f, 0x80, 0xff][self.random(5)],
                _ => drop(file.drain(at..(at + 1 + self.random(8)).min(file.len()))),
            }
        }
        file
    }
}

/// Seeded mutations of whole files through the whole of loading: an error or a session, never a panic.
#[test]
fn mutated_files_load_or_are_refused() {
    let clock = std::sync::Arc::new(crate::clock::SystemClock);
    let mut mutator = Mutator(0x2545_F491_4F6C_DD1D);
    let (mut loaded, mut refused) = (0, 0);
    for whole in [bytes(&float_model()), bytes(&qdq_model())] {
        for _ in 0..400 {
            let file = mutator.mutate(&whole, Mutator::random);
            match Session::load(&file, &[], SessionOptions::default(), clock.clone()) {
                Ok(_) => loaded += 1,
                Err(
                    LoadError::Segment { .. }
                    | LoadError::Graph(_)
                    | LoadError::ElementType(_)
                    | LoadError::IdleOutput(_),
                ) => refused += 1,
            }
        }
    }
    assert!(loaded > 50 && refused > 50, "{loaded} loaded, {refused} refused");
}

/// Nodes stand before the weights, inputs and outputs after them.
#[test]
fn mutated_headers_of_the_zoo_are_read_or_refused() {
    let mut mutator = Mutator(0x9E37_79B9_7F4A_7C15);
    for name in ["efficientnet-lite0", "nanodet-g-coco", "centerface"] {
        let zoo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        let whole = std::fs::read(zoo.join(name).join("model.onnx")).expect("a model of the zoo");
        let (mut read, mut refused) = (0, 0);
        for _ in 0..100 {
            let file = mutator.mutate(&whole, |mutator, len| match mutator.random(4) {
                0 => len - 1 - mutator.random(2048),
                _ => mutator.random(32 << 10),
            });
            match Graph::parse(&file, &Limits::default()) {
                Ok(_) => read += 1,
                Err(_) => refused += 1,
            }
        }
        assert!(read > 0 && refused > 20, "{name}: {read} read, {refused} refused");
    }
}
