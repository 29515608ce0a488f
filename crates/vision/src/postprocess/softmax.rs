//! Classifiers: one row of logits or probabilities to the most likely labels.

use std::sync::Arc;

use crate::Geometry;
use crate::tensor::{TensorSpec, TensorView};
use ocelli_protocol::message::{Classification, Findings};

use super::reals::{Outputs, Reals};
use super::{Head, HeadError};

const NAME: &str = "softmax";

/// What the output row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// Logits: softmax is still to be taken.
    Logits,
    /// Probabilities, reported as they are.
    Probabilities,
}

/// Classification head. Values that are not finite are passed over.
pub struct Softmax {
    outputs: Outputs,
    labels: Arc<[String]>,
    row: Row,
    top_k: usize,
    best: Vec<(f32, usize)>,
    spare: Vec<Classification>,
}

impl Softmax {
    /// A head for one output with a value per label, in any shape with a single dimension above 1.
    ///
    /// # Errors
    /// [`HeadError`] when outputs, labels or `top_k` (at least 1) do not fit.
    pub fn new(
        row: Row,
        top_k: usize,
        labels: Arc<[String]>,
        specs: &[TensorSpec],
    ) -> Result<Self, HeadError> {
        let classes = match specs {
            [spec] if spec.shape.iter().filter(|length| **length != 1).count() <= 1 => spec.len(),
            _ => {
                let expected = format!("one output f32 [1, {}]", labels.len());
                return Err(HeadError::outputs(NAME, expected, specs));
            }
        };
        if classes != labels.len() || classes == 0 {
            return Err(HeadError::Labels { labels: labels.len(), classes });
        }
        if top_k == 0 {
            return Err(HeadError::setting(NAME, "top_k", "0", "1 or more"));
        }
        let top_k = top_k.min(classes);
        Ok(Self {
            outputs: Outputs::new(NAME, specs)?,
            labels,
            row,
            top_k,
            best: Vec::with_capacity(top_k + 1),
            spare: Vec::new(),
        })
    }

    /// The `top_k` largest finite values; of equal ones the lower class first.
    fn select(&mut self, values: &Reals<'_>) {
        self.best.clear();
        for class in 0..self.labels.len() {
            let value = values.at(class);
            let worst = self.best.last().map_or(f32::NEG_INFINITY, |(value, _)| *value);
            if !value.is_finite() || (self.best.len() == self.top_k && value <= worst) {
                continue;
            }
            let at = self.best.partition_point(|(better, _)| *better >= value);
            self.best.insert(at, (value, class));
            self.best.truncate(self.top_k);
        }
    }
}

impl Head for Softmax {
    fn decode(
        &mut self,
        outputs: &[TensorView<'_>],
        _geometry: &Geometry,
        findings: &mut Findings,
    ) -> Result<(), HeadError> {
        let values = self.outputs.reals(outputs, 0)?;
        self.select(&values);
        if !matches!(findings, Findings::Classes(_)) {
            *findings = Findings::Classes(Vec::new());
        }
        let Findings::Classes(classes) = findings else { unreachable!("made so above") };
        self.spare.append(classes);
        self.spare.truncate(self.top_k);

        // Largest first, so that no exponential overflows.
        let largest = self.best.first().map_or(0.0, |(value, _)| *value);
        let exponential = |value: f32| (value - largest).exp();
        let sum: f32 = match self.row {
            Row::Probabilities => 1.0,
            Row::Logits => (0..self.labels.len())
                .map(|class| values.at(class))
                .filter(|value| value.is_finite())
                .map(exponential)
                .sum(),
        };
        for &(value, class) in &self.best {
            let score = match self.row {
                Row::Probabilities => value.clamp(0.0, 1.0),
                Row::Logits => exponential(value) / sum,
            };
            let mut found = self.spare.pop().unwrap_or_else(|| Classification {
                label: String::new(),
                class: 0,
                score: 0.0,
            });
            found.label.clear();
            found.label.push_str(&self.labels[class]);
            classes.push(Classification { class, score, ..found });
        }
        Ok(())
    }
}
