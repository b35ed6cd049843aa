//! What the command prints: aligned columns for people, JSON for programs.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::file::Tensor;

/// The outcome of `gradclip clip`.
pub(crate) struct Report {
    /// Each tensor with its norm before clipping.
    pub(crate) tensors: Vec<(Tensor, f32)>,
    pub(crate) total_norm: f32,
    pub(crate) total_norm_after: f32,
    pub(crate) clip_coef: Option<f32>,
    pub(crate) device: String,
    pub(crate) seconds: Vec<(&'static str, Duration)>,
}

impl Report {
    pub(crate) fn table(&self) -> String {
        let mut tensors = Table::new(["tensor", "shape", "norm"]);
        for (tensor, norm) in &self.tensors {
            // Escaped, so that no name can break the lines or talk to the terminal.
            let name = tensor.name.escape_debug().to_string();
            tensors.row([name, format!("{:?}", tensor.shape), number(*norm)]);
        }
        let times = self.seconds.iter().filter(|(_, time)| !time.is_zero());
        let times: Vec<_> = times.map(|(stage, time)| format!("{stage} {time:.1?}")).collect();

        // Its empty heading parts the two.
        let mut outcome = Table::new(["", ""]);
        outcome.row(["total norm".into(), number(self.total_norm)]);
        outcome.row(["after clipping".into(), number(self.total_norm_after)]);
        outcome.row(["coefficient".into(), self.clip_coef.map_or("none: by value".into(), number)]);
        outcome.row(["device".into(), self.device.clone()]);
        outcome.row(["time".into(), times.join(", ")]);
        tensors.to_string() + &outcome.to_string()
    }

    pub(crate) fn json(&self) -> String {
        let tensor = |(tensor, norm): &(Tensor, f32)| json!({ "name": tensor.name, "dtype": "F32", "shape": tensor.shape, "norm": json_number(*norm) });
        let seconds =
            self.seconds.iter().map(|(stage, time)| ((*stage).to_owned(), json!(time.as_secs_f64())));
        let report = json!({
            "device": self.device,
            "total_norm": json_number(self.total_norm),
            "total_norm_after": json_number(self.total_norm_after),
            "clip_coef": self.clip_coef.map(json_number),
            "non_finite": !self.total_norm.is_finite(),
            "seconds": seconds.collect::<Map<_, _>>(),
            "tensors": self.tensors.iter().map(tensor).collect::<Vec<_>>(),
        });
        format!("{report}\n")
    }
}

/// All digits that tell one f32 from the next, with an exponent where zeros would fill the line.
fn number(x: f32) -> String {
    if x == 0.0 || !x.is_finite() || (1e-4..1e7).contains(&x.abs()) {
        format!("{x}")
    } else {
        format!("{x:e}")
    }
}

/// JSON knows no NaN and no infinity: they become strings.
fn json_number(x: f32) -> Value {
    match x {
        f32::INFINITY => "Infinity".into(),
        f32::NEG_INFINITY => "-Infinity".into(),
        x if x.is_nan() => "NaN".into(),
        // Exactly the f32, which a reader that rounds to f32 gets back.
        x => f64::from(x).into(),
    }
}

/// Columns as wide as what they hold, below a heading.
pub(crate) struct Table<const N: usize>(Vec<[String; N]>);

impl<const N: usize> Table<N> {
    pub(crate) fn new(heading: [&str; N]) -> Self {
        Self(vec![heading.map(str::to_owned)])
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.0.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.0.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        for row in &self.0 {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                write!(line, "{cell:width$}  ")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
