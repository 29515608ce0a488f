//! Tests of the session: partition, fallback on each fault, report.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread;

use super::*;
use crate::clock::{SystemClock, UnixTime};
use crate::inference::reference::{Fault, Reference};
use crate::inference::testing;
use crate::tensor::TensorBuffer;

/// A clock that stands still until told.
struct StillClock(Mutex<Instant>);

impl StillClock {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(SystemClock.now())))
    }

    fn pass(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

impl Clock for StillClock {
    fn now(&self) -> Instant {
        *self.0.lock().unwrap()
    }

    fn wall(&self) -> UnixTime {
        UnixTime::from_micros(0)
    }
}

struct Bench {
    clock: Arc<StillClock>,
    session: Session,
    input: Tensor,
}

const FRAME: Duration = Duration::from_millis(100);

impl Bench {
    fn new(onnx: &[u8], delegates: Vec<Arc<Reference>>) -> Self {
        Self::with(onnx, delegates, StillClock::new())
    }

    fn with(onnx: &[u8], delegates: Vec<Arc<Reference>>, clock: Arc<StillClock>) -> Self {
        let delegates: Vec<Arc<dyn Delegate>> =
            delegates.into_iter().map(|delegate| delegate as Arc<dyn Delegate>).collect();
        let clocks: Arc<dyn Clock> = clock.clone();
        let options = SessionOptions { quarantine_after: 3, ..SessionOptions::default() };
        let session = Session::load(onnx, &delegates, options, clocks).expect("it loads");
        let mut input = Tensor::zeros(session.inputs()[0].clone());
        if let crate::tensor::ValuesMut::F32(values) = input.view_mut().values {
            for (place, value) in values.iter_mut().enumerate() {
                *value = ((place * 29 % 64) as f32 - 32.0) / 20.0;
            }
        }
        Self { clock, session, input }
    }

    fn frame(&mut self) -> Result<Vec<f32>, SessionError> {
        self.session.run(&[self.input.view()], self.clock.now() + FRAME)?;
        Ok(self.session.output(0).values.as_f32().expect("f32").to_vec())
    }

    /// Runs until the stand-in is built, and says how many frames were skipped.
    fn frame_when_ready(&mut self) -> (Vec<f32>, usize) {
        for skipped in 0.. {
            match self.frame() {
                Ok(values) => return (values, skipped),
                Err(SessionError::NotReady) => thread::yield_now(),
                Err(other) => panic!("{other}"),
            }
        }
        unreachable!("a range without end")
    }

    fn delegates(&self) -> Vec<String> {
        self.session.report().segments.into_iter().map(|segment| segment.delegate).collect()
    }
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn models() -> [(&'static str, Vec<u8>, f32); 2] {
    [
        ("float", testing::bytes(&testing::float_model()), 1e-5),
        // One step of the output: the reference rounds in another order at ties.
        ("qdq", testing::bytes(&testing::qdq_model()), 1.01 / 256.0),
    ]
}

#[test]
fn every_split_between_delegate_and_host_gives_the_same_answer() {
    for (name, onnx, tolerance) in models() {
        let expected = Bench::new(&onnx, vec![]).frame().expect("tract runs it");
        assert!(expected.iter().any(|value| *value > 0.3), "{name}: {expected:?}");
        for ops in [&["Conv", "Relu"][..], &["Add"], &["Conv", "Sigmoid"], &["Relu", "Add"]] {
            let guest = Arc::new(Reference::new("guest", ops, Fault::None));
            let mut bench = Bench::new(&onnx, vec![guest]);
            let found = bench.frame().expect("it runs");
            assert!(apart(&found, &expected) <= tolerance, "{name} {ops:?}");
            let report = bench.session.report().segments;
            let guests = report.iter().filter(|segment| segment.delegate == "guest");
            assert!(guests.count() > 0, "{name} {ops:?}: {report:?}");
        }
    }
}

#[test]
fn quantised_cuts_stay_bytes() {
    let onnx = testing::bytes(&testing::qdq_model());
    let guest = Arc::new(Reference::new("guest", &["Add"], Fault::None));
    let bench = Bench::new(&onnx, vec![guest]);
    let inner: Vec<_> = bench.session.tensors.iter().map(|tensor| tensor.spec().element).collect();
    use crate::tensor::ElementType::{F32, U8};
    assert_eq!(inner, [U8, U8, U8, F32], "{:?}", bench.session.tensors);
}

#[test]
fn reports_which_delegate_runs_which_nodes() {
    let onnx = testing::bytes(&testing::qdq_model());
    let first = Arc::new(Reference::new("first", &["Conv"], Fault::None));
    let second = Arc::new(Reference::new("second", &["Conv", "Add"], Fault::None));
    let bench = Bench::new(&onnx, vec![first, second]);
    assert_eq!(bench.delegates(), ["tract", "first", "second", "tract"]);
    let report = bench.session.report().segments;
    assert_eq!(report.iter().map(|segment| segment.macs).sum::<u64>(), 2 * 30 * 18);
    assert_eq!(report[1].nodes.len(), 1);
    assert_eq!(report[1].macs, 2 * 30 * 18);
}

#[test]
fn a_delegate_that_does_not_start_is_replaced_at_load() {
    let cases = [
        (Fault::Refuse, "not this one"),
        (Fault::PanicAtCompile, "compiler bug"),
        (Fault::OtherShape, "other tensors than agreed"),
        (Fault::OtherType, "other tensors than agreed"),
    ];
    for (name, onnx, tolerance) in models() {
        let expected = Bench::new(&onnx, vec![]).frame().expect("tract runs it");
        for (fault, reason) in cases {
            let guest = Arc::new(Reference::new("guest", &["Conv", "Relu"], fault));
            let mut bench = Bench::new(&onnx, vec![guest]);
            let found = bench.frame().expect("tract stands in");
            assert!(apart(&found, &expected) <= tolerance, "{name} {fault:?}");
            assert!(bench.delegates().iter().all(|delegate| delegate == "tract"));
            let report = bench.session.report().segments;
            let errors: Vec<_> =
                report.iter().filter_map(|found| found.last_error.clone()).collect();
            assert!(errors.iter().any(|error| error.contains(reason)), "{fault:?}: {errors:?}");
        }
    }
}

#[test]
fn an_absent_delegate_takes_nothing() {
    for (_, onnx, _) in models() {
        let guest = Arc::new(Reference::new("guest", &["Conv"], Fault::Absent));
        assert_eq!(Bench::new(&onnx, vec![guest]).delegates(), ["tract"]);
    }
}

#[test]
fn a_fault_at_run_time_goes_to_tract_and_back_after_the_pause() {
    let cases = [
        (Fault::Device, "device reset"),
        (Fault::Overrun, "deadline overrun"),
        (Fault::PanicAtRun, "driver bug"),
        (Fault::WrongTensor, "7 outputs"),
    ];
    for (name, onnx, tolerance) in models() {
        let expected = Bench::new(&onnx, vec![]).frame().expect("tract runs it");
        for (fault, reason) in cases {
            let guest = Arc::new(Reference::new("guest", &["Conv", "Relu"], Fault::None));
            let mut bench = Bench::new(&onnx, vec![Arc::clone(&guest)]);
            let whole = bench.delegates();
            bench.frame().expect("the delegate runs");
            guest.set(fault);
            let error = bench.frame().expect_err("tract is not built yet");
            assert!(matches!(error, SessionError::NotReady), "{fault:?}: {error}");
            let (found, _) = bench.frame_when_ready();
            assert!(apart(&found, &expected) <= tolerance, "{name} {fault:?}");
            assert!(bench.delegates().iter().all(|delegate| delegate == "tract"));
            let report = bench.session.report().segments;
            let segment = report.iter().find(|segment| segment.fallbacks == 1).expect("counted");
            let last = segment.last_error.as_deref().unwrap_or_default();
            assert!(last.contains(reason), "{fault:?}: {last}");

            guest.set(Fault::None);
            let before = guest.runs.load(Ordering::Relaxed);
            bench.frame().expect("tract runs");
            assert_eq!(guest.runs.load(Ordering::Relaxed), before, "it pauses");
            bench.clock.pass(Duration::from_secs(2));
            bench.frame().expect("the delegate runs again");
            assert_eq!(bench.delegates(), whole);
        }
    }
}

#[test]
fn a_late_answer_is_used_and_the_next_frame_goes_elsewhere() {
    let clock = StillClock::new();
    let slow = Arc::clone(&clock);
    let guest =
        Reference::new("guest", &["Conv"], Fault::None).dawdling(move || slow.pass(FRAME * 2));
    let guest = Arc::new(guest);
    let onnx = testing::bytes(&testing::float_model());
    let mut bench = Bench::with(&onnx, vec![Arc::clone(&guest)], clock);
    let right = bench.frame().expect("in time");
    guest.set(Fault::Late);
    assert!(apart(&bench.frame().expect("late, and right"), &right) == 0.0);
    let error = bench.frame().expect_err("tract is being built");
    assert!(matches!(error, SessionError::NotReady));
    bench.frame_when_ready();
    assert_eq!(bench.delegates()[0], "tract");
}

#[test]
fn repeated_faults_end_in_quarantine() {
    let onnx = testing::bytes(&testing::float_model());
    let guest = Arc::new(Reference::new("guest", &["Conv"], Fault::Device));
    let mut bench = Bench::new(&onnx, vec![Arc::clone(&guest)]);
    for _ in 0..6 {
        bench.frame_when_ready();
        bench.clock.pass(Duration::from_secs(3600));
    }
    assert_eq!(guest.runs.load(Ordering::Relaxed), 3);
    guest.set(Fault::None);
    bench.frame().expect("tract runs");
    assert_eq!(guest.runs.load(Ordering::Relaxed), 3);
}

#[test]
fn another_delegate_stands_in_before_tract() {
    let onnx = testing::bytes(&testing::float_model());
    let npu = Arc::new(Reference::new("npu", &["Conv", "Relu"], Fault::Device));
    let cpu = Arc::new(Reference::new("cpu", &["Conv", "Relu", "Add"], Fault::None));
    let mut bench = Bench::new(&onnx, vec![npu, Arc::clone(&cpu)]);
    bench.frame_when_ready();
    assert_eq!(bench.delegates(), ["cpu", "cpu", "tract"]);
}

#[test]
fn the_golden_check_puts_a_wrong_delegate_aside() {
    for (name, onnx, tolerance) in models() {
        let mut plain = Bench::new(&onnx, vec![]);
        let expected = TensorBuffer::F32(plain.frame().expect("tract runs it"));
        let shape = plain.session.outputs()[0].shape.clone();
        let expected = TensorView { shape: &shape, values: expected.as_values() };
        let tolerance = Tolerance { real: tolerance, steps: 1 };
        for (fault, stays) in [(Fault::WrongValues, false), (Fault::None, true)] {
            let guest = Arc::new(Reference::new("guest", &["Conv", "Relu"], fault));
            let mut bench = Bench::new(&onnx, vec![guest]);
            let input = bench.input.clone();
            bench.session.verify(&[input.view()], &[expected], tolerance).expect("it passes");
            let found = bench.delegates().contains(&"guest".to_owned());
            assert_eq!(found, stays, "{name} {fault:?}: {:?}", bench.session.report());
        }
    }
}

#[test]
fn the_golden_check_fails_when_tract_itself_differs() {
    let onnx = testing::bytes(&testing::float_model());
    let mut bench = Bench::new(&onnx, vec![]);
    let expected = Tensor::zeros(bench.session.outputs()[0].clone());
    let input = bench.input.clone();
    let tolerance = Tolerance { real: 1e-3, steps: 1 };
    let error = bench.session.verify(&[input.view()], &[expected.view()], tolerance);
    assert!(matches!(error, Err(VerifyError::Differs { .. })), "{error:?}");
    let error = bench.session.verify(&[input.view()], &[], tolerance);
    assert!(matches!(error, Err(VerifyError::WrongExpectation(0))), "{error:?}");
}

#[test]
fn refuses_an_input_of_another_shape_or_type() {
    let mut bench = Bench::new(&testing::bytes(&testing::float_model()), vec![]);
    let deadline = bench.clock.now() + FRAME;
    let bytes = [0_u8; 60];
    let floats = [0.0_f32; 60];
    let cases: [&[TensorView<'_>]; 3] = [
        &[],
        &[TensorView { shape: &[1, 2, 5, 6], values: crate::tensor::Values::U8(&bytes) }],
        &[TensorView { shape: &[1, 2, 6, 5], values: crate::tensor::Values::F32(&floats) }],
    ];
    for inputs in cases {
        let error = bench.session.run(inputs, deadline);
        assert!(matches!(error, Err(SessionError::WrongInput { .. })), "{error:?}");
    }
}

#[test]
fn what_computes_on_this_processor_is_not_given_up_for_being_late() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let onnx = testing::bytes(&testing::qdq_model());
    let delegates = crate::inference::delegates(&["int8".to_owned()], &clock);
    let options = SessionOptions { quarantine_after: 1, ..SessionOptions::default() };
    let mut session = Session::load(&onnx, &delegates, options, Arc::clone(&clock)).unwrap();
    let input = Tensor::zeros(session.inputs()[0].clone());
    for _ in 0..3 {
        let passed = clock.now() - FRAME;
        session.run(&[input.view()], passed).expect("late, but right");
    }
    let report = session.report();
    assert!(report.segments.iter().any(|segment| segment.delegate == "int8"), "{report:?}");
    assert!(report.segments.iter().all(|segment| segment.fallbacks == 0), "{report:?}");
}
