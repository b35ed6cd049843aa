//! Trains with Burn's `Learner`, clips the gradients by global norm and logs their norms:
//! `cargo run --features train,wgpu --example learner [gpu|cpu]`
//!
//! The example fits a line to points with outliers, whose gradients are far larger than the rest. Plain SGD diverges at
//! the first outlier; with clipping, it converges. The two runs differ only in `Clipping`.

use std::error::Error;
use std::sync::Arc;

use burn::Tensor;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::SgdConfig;
use burn::tensor::{Device, TensorData};
use burn::train::logger::FileMetricLogger;
use burn::train::metric::LossMetric;
use burn::train::{
    InferenceStep, Learner, LearnerModel, LearningResult, RegressionOutput, SupervisedTraining, TrainOutput,
    TrainStep,
};
use gradclip_burn::{Clipping, GradClipper};

const BATCH: usize = 8;
const LEARNING_RATE: f64 = 0.1;

#[derive(Module, Debug)]
struct Line {
    linear: Linear,
}

/// A batch of points.
#[derive(Clone, Debug)]
struct Points {
    x: Tensor<2>,
    y: Tensor<2>,
}

struct PointBatcher;

impl Batcher<[f32; 2], Points> for PointBatcher {
    fn batch(&self, points: Vec<[f32; 2]>, device: &Device) -> Points {
        let column = |index: usize| {
            let values: Vec<_> = points.iter().map(|point| point[index]).collect();
            Tensor::from_data(TensorData::new(values, [points.len(), 1]), device)
        };
        Points { x: column(0), y: column(1) }
    }
}

impl Line {
    fn new(device: &Device) -> Self {
        Self { linear: LinearConfig::new(1, 1).init(device) }
    }

    fn regress(&self, points: Points) -> RegressionOutput {
        let predicted = self.linear.forward(points.x);
        let loss = (predicted.clone() - points.y.clone()).square().mean();
        RegressionOutput::new(loss, predicted, points.y)
    }
}

impl TrainStep for Line {
    type Input = Points;
    type Output = RegressionOutput;

    fn step(&self, points: Points) -> TrainOutput<RegressionOutput> {
        let output = self.regress(points);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl InferenceStep for Line {
    type Input = Points;
    type Output = RegressionOutput;

    fn step(&self, points: Points) -> RegressionOutput {
        self.regress(points)
    }
}

/// Returns points of the line `2 x + 1`. One in 40 is an outlier, with an `x` a thousand times as large.
fn points(count: usize) -> Arc<dyn DataLoader<Points>> {
    let point = |index: usize| {
        let x = (index * 37 % 101) as f32 / 50.0 - 1.0;
        let x = if index % 40 == 39 { x * 1000.0 } else { x };
        [x, 2.0 * x + 1.0]
    };
    DataLoaderBuilder::new(PointBatcher)
        .batch_size(BATCH)
        .build(InMemDataset::new((0..count).map(point).collect()))
}

/// Trains, and logs the loss to `directory`.
fn train<M>(
    training: SupervisedTraining<M>,
    directory: &str,
    model: M,
) -> Result<LearningResult<M>, Box<dyn Error>>
where
    M: LearnerModel + TrainStep<Output = RegressionOutput> + InferenceStep<Output = RegressionOutput>,
{
    let result = training
        .num_epochs(4)
        .metrics((LossMetric::new(),))
        .with_metric_logger(FileMetricLogger::new(directory))
        .with_application_logger(None)
        .launch(Learner::new(model, SgdConfig::new().init(), LEARNING_RATE));
    match &result.error {
        Some(error) => Err(error.to_string().into()),
        None => Ok(result),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = match std::env::args().nth(1).as_deref() {
        None | Some("gpu") => Device::default(),
        Some("cpu") => Device::flex(),
        Some(other) => return Err(format!("unknown device {other}: expected gpu or cpu").into()),
    };
    let directory = std::env::temp_dir().join("gradclip-learner");
    let directory = |run: &str| directory.join(run).display().to_string();
    let line = Line::new(&device.clone().autodiff());

    let log = directory("plain");
    let training = SupervisedTraining::new(&log, points(400), points(80));
    let plain = train(training, &log, line.clone())?.model;

    let log = directory("clipped");
    let training = SupervisedTraining::new(&log, points(400), points(80));
    let line = Clipping::new(line, GradClipper::by_global_norm(1.0)?, training.interrupter());
    let training = training.metric_train_numeric(line.grad_norm()).metric_train_numeric(line.clipped());
    let clipped = train(training, &log, line)?.model.into_inner()?;

    for (name, line) in [("not clipped", plain), ("clipped", clipped)] {
        let slope: f32 = line.linear.weight.val().into_scalar();
        let bias = line.linear.bias.map(|bias| bias.val().into_scalar::<f32>());
        println!("{name:12} {slope:.3} x + {:.3}", bias.unwrap_or(0.0));
    }
    println!("the line is   2 x + 1; the norm and the loss of each step are in {log}");
    Ok(())
}
