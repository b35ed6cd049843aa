//! Three runs of one LSTM: without clipping, with Burn's clipping of each tensor by itself, and with clipping by global
//! norm. `cargo run --features wgpu --example rnn [gpu|cpu] [STEPS] [PICTURE.svg]`
//!
//! The task is the adding problem (Hochreiter and Schmidhuber 1997): sum the two marked numbers of a sequence. The
//! weights start too large, so that gradients explode on their way back through time, and the steps of plain SGD with
//! them. All runs start from the same weights and see the same sequences; the picture shows their losses.

use std::error::Error;
use std::fmt::Write as _;

use burn::Tensor;
use burn::grad_clipping::GradientClipping;
use burn::module::Module;
use burn::nn::{Initializer, Linear, LinearConfig, Lstm, LstmConfig};
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, TensorData};
use gradclip_burn::GradClipper;

const HIDDEN: usize = 24;
const LENGTH: usize = 40;
const BATCH: usize = 16;
const LEARNING_RATE: f64 = 0.5;
const MAX_NORM: f32 = 1.0;

#[derive(Module, Debug)]
struct Adder {
    lstm: Lstm,
    head: Linear,
}

impl Adder {
    fn new(device: &Device) -> Self {
        device.seed(7);
        let initializer = Initializer::Normal { mean: 0.0, std: 1.0 };
        Self {
            lstm: LstmConfig::new(2, HIDDEN, true).with_initializer(initializer).init(device),
            head: LinearConfig::new(HIDDEN, 1).init(device),
        }
    }

    fn loss(&self, inputs: Tensor<3>, targets: Tensor<2>) -> Tensor<1> {
        let (states, _) = self.lstm.forward(inputs, None);
        let last = states.slice([0..BATCH, LENGTH - 1..LENGTH]).reshape([BATCH, HIDDEN]);
        (self.head.forward(last) - targets).square().mean()
    }
}

/// How a run clips.
enum Way {
    Not,
    EachTensor,
    Globally(GradClipper),
}

/// The losses of a run.
fn train(way: &Way, steps: usize, device: &Device) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut model = Adder::new(device);
    let mut optimizer: ModuleOptimizer = SgdConfig::new().init();
    if let Way::EachTensor = way {
        optimizer = optimizer.with_grad_clipping(GradientClipping::Norm(MAX_NORM));
    }
    let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
    let mut losses = Vec::new();
    for _ in 0..steps {
        let (inputs, targets) = random.batch(device);
        let loss = model.loss(inputs, targets);
        losses.push(loss.clone().detach());
        let mut grads = GradientsParams::from_grads(loss.backward(), &model);
        if let Way::Globally(clipper) = way {
            clipper.clip(&mut grads, &model)?;
        }
        model = optimizer.step(LEARNING_RATE, model, grads);
    }
    // Nobody has waited until here.
    Ok(Tensor::cat(losses, 0).try_into_data()?.try_to_vec()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let device = match arguments.next().as_deref() {
        None | Some("gpu") => Device::default(),
        Some("cpu") => Device::flex(),
        Some(other) => return Err(format!("{other} is neither gpu nor cpu").into()),
    };
    let steps = arguments.next().map_or(Ok(300), |steps| steps.parse())?;
    let path = arguments.next().unwrap_or_else(|| "rnn.svg".to_owned());
    let device = device.autodiff();
    let ways = [
        ("no clipping", "#c0392b", Way::Not),
        ("each tensor by itself (Burn)", "#2471a3", Way::EachTensor),
        ("global norm (gradclip)", "#1e8449", Way::Globally(GradClipper::by_global_norm(MAX_NORM)?)),
    ];
    let mut runs = Vec::new();
    for (name, colour, way) in ways {
        let losses = train(&way, steps, &device)?;
        let tail = &losses[losses.len() - (losses.len() / 5).max(1)..];
        let mean = tail.iter().sum::<f32>() / tail.len() as f32;
        let worst = losses.iter().copied().fold(0.0, f32::max);
        println!("{name:30} last fifth of the losses: {mean:10.4}, worst: {worst:10.4}");
        runs.push((name, colour, losses));
    }
    std::fs::write(&path, picture(&runs))?;
    println!("the picture is {path}");
    Ok(())
}

/// The losses as curves, on a logarithmic scale.
fn picture(runs: &[(&str, &str, Vec<f32>)]) -> String {
    let [width, height, margin] = [720.0, 400.0, 40.0];
    let finite =
        || runs.iter().flat_map(|(.., losses)| losses).copied().filter(|x| x.is_finite() && *x > 0.0);
    let low = finite().fold(f32::INFINITY, f32::min).log10().floor();
    let high = finite().fold(0.0, f32::max).log10().ceil().max(low + 1.0);
    let y = |loss: f32| {
        height - margin - (loss.log10().clamp(low, high) - low) / (high - low) * (height - 2.0 * margin)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for tick in 0..=8 {
        let loss = 10_f32.powf(low + (high - low) * tick as f32 / 8.0);
        let at = y(loss);
        let _ = writeln!(
            svg,
            "<path d=\"M{margin} {at}H{}\" stroke=\"#ddd\"/><text x=\"2\" y=\"{at}\">{loss:.1e}</text>",
            width - margin
        );
    }
    for (index, (name, colour, losses)) in runs.iter().enumerate() {
        let step = (width - 2.0 * margin) / losses.len().max(2) as f32;
        let mut points = String::new();
        for (at, &loss) in losses.iter().enumerate() {
            // What is no number any more is drawn at the top.
            let loss = if loss.is_finite() { loss } else { f32::MAX };
            let _ = write!(points, "{:.1},{:.1} ", margin + at as f32 * step, y(loss));
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{name}</text>",
            margin + 8.0,
            16.0 + 15.0 * index as f32
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Marsaglia's generator: the same sequences for every run.
struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("a remainder of n fits where n does")
    }

    /// Sequences of (number, mark), with one mark in each half, and the sums of the two marked numbers.
    fn batch(&mut self, device: &Device) -> (Tensor<3>, Tensor<2>) {
        let mut inputs = Vec::new();
        let mut targets = Vec::new();
        for _ in 0..BATCH {
            let numbers: Vec<_> = (0..LENGTH).map(|_| self.uniform()).collect();
            let marked = [self.below(LENGTH / 2), LENGTH / 2 + self.below(LENGTH / 2)];
            targets.push(marked.map(|t| numbers[t]).iter().sum::<f32>());
            for (t, number) in numbers.into_iter().enumerate() {
                inputs.extend([number, f32::from(u8::from(marked.contains(&t)))]);
            }
        }
        (
            Tensor::from_data(TensorData::new(inputs, [BATCH, LENGTH, 2]), device),
            Tensor::from_data(TensorData::new(targets, [BATCH, 1]), device),
        )
    }
}
