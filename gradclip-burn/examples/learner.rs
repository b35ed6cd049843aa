//! Burn's own training loop, with gradients clipped by global norm and their norms in its log.
//! `cargo run --features train,wgpu --example learner [gpu|cpu]`
//!
//! A line is fitted to points of which some are far off. Their gradients are many times as large as the others, and plain SGD
//! with this learning rate is thrown off by the first of them; clipped, it is not. All that differs is `Clipping`.

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

/// Points, and what the line is to be there.
#[derive(Clone, Debug)]
struct Points {
    at: Tensor<2>,
    values: Tensor<2>,
}

struct Stack;

impl Batcher<[f32; 2], Points> for Stack {
    fn batch(&self, points: Vec<[f32; 2]>, device: &Device) -> Points {
        let column = |index: usize| {
            let values: Vec<_> = points.iter().map(|point| point[index]).collect();
            Tensor::from_data(TensorData::new(values, [points.len(), 1]), device)
        };
        Points { at: column(0), values: column(1) }
    }
}

impl Line {
    fn new(device: &Device) -> Self {
        Self { linear: LinearConfig::new(1, 1).init(device) }
    }

    fn outcome(&self, points: Points) -> RegressionOutput {
        let found = self.linear.forward(points.at);
        let loss = (found.clone() - points.values.clone()).square().mean();
        RegressionOutput::new(loss, found, points.values)
    }
}

impl TrainStep for Line {
    type Input = Points;
    type Output = RegressionOutput;

    fn step(&self, points: Points) -> TrainOutput<RegressionOutput> {
        let outcome = self.outcome(points);
        TrainOutput::new(self, outcome.loss.backward(), outcome)
    }
}

impl InferenceStep for Line {
    type Input = Points;
    type Output = RegressionOutput;

    fn step(&self, points: Points) -> RegressionOutput {
        self.outcome(points)
    }
}

/// Points of the line `2 x + 1`; of each 40 one lies a thousand times as far out.
fn points(count: usize) -> Arc<dyn DataLoader<Points>> {
    let point = |index: usize| {
        let x = (index * 37 % 101) as f32 / 50.0 - 1.0;
        let x = if index % 40 == 39 { x * 1000.0 } else { x };
        [x, 2.0 * x + 1.0]
    };
    DataLoaderBuilder::new(Stack).batch_size(BATCH).build(InMemDataset::new((0..count).map(point).collect()))
}

/// Trains, with the loss in the log of this directory.
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
        Some(other) => return Err(format!("{other} is neither gpu nor cpu").into()),
    };
    let directory = std::env::temp_dir().join("gradclip-learner");
    let directory = |run: &str| directory.join(run).display().to_string();
    let line = Line::new(&device.clone().autodiff());

    let place = directory("plain");
    let training = SupervisedTraining::new(&place, points(400), points(80));
    let plain = train(training, &place, line.clone())?.model;

    let place = directory("clipped");
    let training = SupervisedTraining::new(&place, points(400), points(80));
    let line = Clipping::new(line, GradClipper::by_global_norm(1.0)?, training.interrupter());
    let training = training.metric_train_numeric(line.grad_norm()).metric_train_numeric(line.clipped());
    let clipped = train(training, &place, line)?.model.into_inner()?;

    for (name, line) in [("not clipped", plain), ("clipped", clipped)] {
        let slope: f32 = line.linear.weight.val().into_scalar();
        let bias = line.linear.bias.map(|bias| bias.val().into_scalar::<f32>());
        println!("{name:12} {slope:.3} x + {:.3}", bias.unwrap_or(0.0));
    }
    println!("the line is   2 x + 1; norms and losses of each step are in {place}");
    Ok(())
}
