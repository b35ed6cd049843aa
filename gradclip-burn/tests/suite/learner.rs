//! `Clipping` in Burn's training loop, compared with the same training in f64.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::module::{Module, Param};
use burn::optim::{GradientsParams, ModuleOptimizer, MultiGradientsParams, SgdConfig};
use burn::tensor::quantization::QuantScheme;
use burn::tensor::{Device, Tensor, TensorData};
use burn::train::checkpoint::KeepLastNCheckpoints;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, NumericEntry};
use burn::train::{
    ExecutionStrategy, InferenceStep, Interrupter, Learner, LearnerModel, LearningResult, MultiDeviceOptim,
    RegressionOutput, SupervisedTraining, TrainOutput, TrainStep, TrainingStrategy,
};
use gradclip::Error as Core;
use gradclip_burn::{Clip, Clipping, Error, GradClipper, LossScale, NonFinite};

use crate::{Model, assert_clipped, clipper, devices, noise, values, vector};

const INPUTS: usize = 3;
const OUTPUTS: usize = 2;
const BATCH: usize = 4;
const ITEMS: usize = 24;
const LEARNING_RATE: f64 = 0.05;
const MAX_NORM: f32 = 3.0;

type Item = [f32; INPUTS + OUTPUTS];
type Parameters = [f64; (INPUTS + 1) * OUTPUTS];

/// The model `x · weight + bias`.
#[derive(Module, Debug)]
struct Regression {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

#[derive(Clone, Debug)]
struct Batch {
    inputs: Tensor<2>,
    targets: Tensor<2>,
}

struct Rows;

impl Batcher<Item, Batch> for Rows {
    fn batch(&self, items: Vec<Item>, device: &Device) -> Batch {
        let columns = |from: usize, to: usize| {
            let values: Vec<_> = items.iter().flat_map(|item| item[from..to].to_vec()).collect();
            Tensor::from_data(TensorData::new(values, [items.len(), to - from]), device)
        };
        Batch { inputs: columns(0, INPUTS), targets: columns(INPUTS, INPUTS + OUTPUTS) }
    }
}

impl Regression {
    fn new(device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::zeros([INPUTS, OUTPUTS], device)),
            bias: Param::from_tensor(Tensor::zeros([OUTPUTS], device)),
        }
    }

    fn outcome(&self, batch: Batch) -> RegressionOutput {
        // No `matmul`: Burn would autotune it, which takes half a minute on a software adapter.
        let products = batch.inputs.unsqueeze_dim::<3>(2) * self.weight.val().unsqueeze::<3>();
        let outputs = products.sum_dim(1).squeeze_dim::<2>(1) + self.bias.val().unsqueeze();
        let loss = (outputs.clone() - batch.targets.clone()).square().mean();
        RegressionOutput::new(loss, outputs, batch.targets)
    }

    fn parameters(&self) -> Vec<f32> {
        [values(self.weight.val().inner()), values(self.bias.val().inner())].concat()
    }
}

impl TrainStep for Regression {
    type Input = Batch;
    type Output = RegressionOutput;

    fn step(&self, batch: Batch) -> TrainOutput<RegressionOutput> {
        let outcome = self.outcome(batch);
        TrainOutput::new(self, outcome.loss.backward(), outcome)
    }
}

impl InferenceStep for Regression {
    type Input = Batch;
    type Output = RegressionOutput;

    fn step(&self, batch: Batch) -> RegressionOutput {
        self.outcome(batch)
    }
}

/// Returns the training set. Some batches have gradients beyond the limit, others within it.
fn items() -> Vec<Item> {
    let numbers = noise(ITEMS * (INPUTS + OUTPUTS), 77);
    let (rows, _) = numbers.as_chunks::<{ INPUTS + OUTPUTS }>();
    let size = |index: usize| if (index / BATCH).is_multiple_of(2) { 4.0 } else { 0.5 };
    rows.iter().enumerate().map(|(index, row)| row.map(|x| x * size(index))).collect()
}

/// Returns the gradient of a batch, in f64.
fn gradient(parameters: &Parameters, batch: &[Item]) -> Parameters {
    let mut gradient = [0.0; (INPUTS + 1) * OUTPUTS];
    for item in batch {
        let item = item.map(f64::from);
        for output in 0..OUTPUTS {
            let at = |input: usize| input * OUTPUTS + output;
            let inputs = || item[..INPUTS].iter().copied().chain([1.0]).enumerate();
            let value: f64 = inputs().map(|(input, x)| x * parameters[at(input)]).sum();
            let error = 2.0 * (value - item[INPUTS + output]) / (batch.len() * OUTPUTS) as f64;
            for (input, x) in inputs() {
                gradient[at(input)] += x * error;
            }
        }
    }
    gradient
}

/// Trains in f64 and returns the norm of each step and the final parameters. Each step sums the gradients of its
/// batches.
fn simulate(start: Parameters, steps: &[Vec<Vec<Item>>], max_norm: f64) -> (Vec<f64>, Parameters) {
    let mut parameters = start;
    let mut norms = Vec::new();
    for batches in steps {
        let mut sum = [0.0; (INPUTS + 1) * OUTPUTS];
        for batch in batches {
            let of_batch = gradient(&parameters, batch);
            sum.iter_mut().zip(of_batch).for_each(|(sum, element)| *sum += element);
        }
        let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        norms.push(norm);
        let coef = gradclip::reference::clip_coef(norm, max_norm);
        parameters.iter_mut().zip(sum).for_each(|(parameter, sum)| *parameter -= LEARNING_RATE * coef * sum);
    }
    (norms, parameters)
}

/// Returns the steps of one epoch, one for each batch.
fn batches() -> Vec<Vec<Vec<Item>>> {
    items().chunks(BATCH).map(|batch| vec![batch.to_vec()]).collect()
}

fn assert_close<T: Into<f64> + Copy>(found: &[T], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let found: f64 = found.into();
        assert!(
            (found - expected).abs() <= 1e-5 * expected.abs().max(0.1),
            "{what} {index}: {found}, not {expected}"
        );
    }
}

fn loader(items: Vec<Item>) -> Arc<dyn DataLoader<Batch>> {
    DataLoaderBuilder::new(Rows).batch_size(BATCH).build(InMemDataset::new(items))
}

/// The logged values of the metrics: name, epoch and number. Epoch summaries are excluded.
type Log = Arc<Mutex<Vec<(String, usize, f64)>>>;

struct Logger(Log);

impl MetricLogger for Logger {
    fn log(&mut self, update: MetricsUpdate, epoch: usize, split: &Split) {
        for numeric in update.entries_numeric {
            if let Some(NumericEntry::Aggregated { aggregated_value, .. }) = numeric.numeric_entry {
                assert_eq!(*split, Split::Train);
                let name = format!("{:?}", numeric.entry.metric_id);
                self.0.lock().expect("a log").push((name, epoch, aggregated_value));
            }
        }
    }

    fn read_numeric(&mut self, _: &str, _: usize, _: &Split) -> Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _: EpochSummary) {}
}

fn logged(log: &Log, metric: &str) -> Vec<f64> {
    let log = log.lock().expect("a log");
    log.iter().filter(|(name, ..)| name.contains(metric)).map(|&(.., value)| value).collect()
}

fn training<M>(log: &Log, items: Vec<Item>) -> SupervisedTraining<M>
where
    M: LearnerModel + TrainStep<Input = Batch> + InferenceStep<Input = Batch>,
{
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    SupervisedTraining::new(directory, loader(items), loader(self::items()))
        .with_application_logger(None)
        .with_metric_logger(Logger(log.clone()))
}

fn sgd() -> ModuleOptimizer {
    SgdConfig::new().init()
}

/// Trains with both metrics.
fn launch(
    training: SupervisedTraining<Clipping<Regression>>,
    model: Clipping<Regression>,
) -> LearningResult<Clipping<Regression>> {
    // This also registers them for validation, where they have no values.
    let training = training.metrics((model.grad_norm(), model.clipped()));
    training.launch(Learner::new(model, sgd(), LEARNING_RATE))
}

fn clipping(device: &Device) -> Clipping<Regression> {
    Clipping::new(Regression::new(device), clipper(Clip::by_global_norm(MAX_NORM)), Interrupter::new())
}

#[test]
fn a_learner_trains_with_clipped_gradients() {
    for device in devices() {
        let device = device.autodiff();
        let log = Log::default();
        let result = launch(training(&log, items()).num_epochs(2), clipping(&device));
        assert!(result.error.is_none() && result.interrupted.is_none());

        let steps = [batches(), batches()].concat();
        let (norms, parameters) = simulate([0.0; 8], &steps, f64::from(MAX_NORM));
        let beyond = norms.iter().filter(|&&norm| norm > f64::from(MAX_NORM)).count();
        assert!((3..10).contains(&beyond), "{norms:?} are no test of a limit of {MAX_NORM}");
        assert_close(&logged(&log, "Gradient norm"), &norms, "the logged norm of step");
        let expected: Vec<_> =
            norms.iter().map(|&norm| if norm > f64::from(MAX_NORM) { 100.0 } else { 0.0 }).collect();
        assert_eq!(logged(&log, "Gradients clipped"), expected);
        let newest = values(result.model.last().unwrap().norm());
        assert_close(&newest, &norms[norms.len() - 1..], "the newest norm");
        assert_eq!(result.model.last().unwrap().parameters(), ["weight", "bias"]);
        let trained = result.model.into_inner().unwrap().parameters();
        assert_close(&trained, &parameters, "parameter");

        // The same training in a hand-written loop.
        let (clipper, mut optimizer) = (clipper(Clip::by_global_norm(MAX_NORM)), sgd());
        let mut model = Regression::new(&device);
        for batch in [batches(), batches()].concat().concat() {
            let mut output = TrainStep::step(&model, Rows.batch(batch, &device));
            clipper.clip(&mut output.grads, &model).unwrap();
            model = optimizer.step(LEARNING_RATE, model, output.grads);
        }
        for (trained, by_hand) in trained.iter().zip(model.parameters()) {
            let difference = (trained - by_hand).abs();
            assert!(difference <= 1e-6 * by_hand.abs(), "{trained}, but {by_hand} in a hand-written loop");
        }
    }
}

/// The limits of the steps in the tests of schedules: those at the end of a training are lower.
fn limit_of(step: usize) -> f32 {
    if step < 5 { MAX_NORM } else { 0.25 }
}

/// Trains in f64 with the limits of [`limit_of`].
fn simulate_schedule(steps: &[Vec<Vec<Item>>]) -> Parameters {
    steps.iter().enumerate().fold([0.0; 8], |parameters, (index, step)| {
        simulate(parameters, std::slice::from_ref(step), limit_of(index).into()).1
    })
}

#[test]
fn a_limit_follows_a_schedule() {
    for device in devices() {
        let device = device.autodiff();
        let steps = [batches(), batches()].concat();
        let expected = simulate_schedule(&steps);
        let (_, fixed) = simulate([0.0; 8], &steps, f64::from(MAX_NORM));
        assert!((expected[0] - fixed[0]).abs() > 1e-3, "the schedule makes no difference");
        let model = clipping(&device).with_max_norm_schedule(limit_of);
        let result = launch(training(&Log::default(), items()).num_epochs(2), model);
        assert!(result.error.is_none());
        assert_close(&result.model.into_inner().unwrap().parameters(), &expected, "parameter");

        // The steps of accumulated gradients, and the limits of all groups: all parameters are in one.
        let clip = Clip::by_global_norm(0.0);
        let clipper = clipper(clip).group(clip, |_| true).unwrap();
        let model = Clipping::new(Regression::new(&device), clipper, Interrupter::new())
            .with_max_norms_schedule(|step| vec![0.0, limit_of(step + 4)]);
        let result = launch(training(&Log::default(), items()).num_epochs(2).grads_accumulation(2), model);
        assert!(result.error.is_none());
        let windows: Vec<_> = [batches(), batches()].concat().chunks(2).map(<[_]>::concat).collect();
        let (_, first) = simulate([0.0; 8], &windows[..1], limit_of(4).into());
        let (_, expected) = simulate(first, &windows[1..], limit_of(5).into());
        assert_close(&result.model.into_inner().unwrap().parameters(), &expected, "parameter");
    }
}

type Change = Box<dyn Fn(Clipping<Regression>) -> Clipping<Regression>>;
type Check = fn(&Core) -> bool;

#[test]
fn an_invalid_limit_stops_the_training_before_the_step() {
    let device = Device::flex().autodiff();
    let norm = Clip::by_global_norm;
    let from_3 = |limit: f32| move |step: usize| if step < 3 { MAX_NORM } else { limit };
    let cases: [(Clip, Change, usize, Check); 4] = [
        (
            norm(1.0),
            Box::new(move |model| model.with_max_norm_schedule(from_3(f32::NAN))),
            3,
            |error| matches!(error, Core::MaxNorm { given } if given.is_nan()),
        ),
        (norm(1.0), Box::new(move |model| model.with_max_norm_schedule(from_3(-1.0))), 3, |error| {
            matches!(error, Core::MaxNorm { given: -1.0 })
        }),
        (
            norm(1.0),
            Box::new(|model| model.with_max_norms_schedule(|step| vec![MAX_NORM; step.max(2) - 1])),
            3,
            |error| matches!(error, Core::LimitCount { given: 2, groups: 1 }),
        ),
        (Clip::by_value(1.0), Box::new(|model| model.with_max_norm_schedule(limit_of)), 0, |error| {
            matches!(error, Core::NeedsNorm { .. })
        }),
    ];
    for (clip, change, steps, is_expected) in cases {
        let training = training(&Log::default(), items());
        let model = Clipping::new(Regression::new(&device), clipper(clip), training.interrupter());
        let result = launch(training.num_epochs(50), change(model));
        assert!(result.error.is_some(), "{clip:?}");
        let (_, parameters) = simulate([0.0; 8], &batches()[..steps], f64::from(MAX_NORM));
        assert_close(&result.model.inner().parameters(), &parameters, "parameter");
        let error = result.model.into_inner().unwrap_err();
        assert!(matches!(&*error, Error::Clip(error) if is_expected(error)), "{error}");
    }
}

/// The accumulated sum is clipped, and only the item that completes a step has a norm.
#[test]
fn accumulated_gradients_are_clipped() {
    for device in devices() {
        let log = Log::default();
        let result = launch(training(&log, items()).grads_accumulation(4), clipping(&device.autodiff()));
        let windows: Vec<_> = batches().chunks(4).map(<[_]>::concat).collect();
        let (norms, parameters) = simulate([0.0; 8], &windows, f64::from(MAX_NORM));
        assert!(norms.iter().any(|&norm| norm > f64::from(MAX_NORM)));
        assert_close(&logged(&log, "Gradient norm"), &norms, "the logged norm of step");
        assert_close(&result.model.inner().parameters(), &parameters, "parameter");
    }
}

/// A sharded optimizer receives clipped sums.
#[test]
fn the_gradients_of_several_devices_are_summed_and_then_clipped() {
    for device in devices() {
        let device = device.autodiff();
        let strategy = ExecutionStrategy::multi(vec![device.clone(); 2], MultiDeviceOptim::OptimSharded);
        let log = Log::default();
        let training = training(&log, items()).with_training_strategy(TrainingStrategy::Default(strategy));
        let result = launch(training, clipping(&device));
        assert!(result.error.is_none(), "{:?}", result.error);
        // Each worker has half of the items.
        let items = items();
        let (first, second) = items.split_at(ITEMS / 2);
        let steps: Vec<_> = first
            .chunks(BATCH)
            .zip(second.chunks(BATCH))
            .map(|(a, b)| vec![a.to_vec(), b.to_vec()])
            .collect();
        let (norms, parameters) = simulate([0.0; 8], &steps, f64::from(MAX_NORM));
        assert!(norms.iter().any(|&norm| norm > f64::from(MAX_NORM)));
        assert_close(&logged(&log, "Gradient norm"), &norms, "the logged norm of step");
        assert_close(&result.model.inner().parameters(), &parameters, "parameter");
    }
}

#[test]
fn sums_over_devices_are_on_the_devices_that_burn_chooses() {
    let [gpu, cpu] = devices();
    let model = Model::new(&[], &[300, 5, 7, 11], &gpu);
    let mut grads = MultiGradientsParams::default();
    let mut expected = Vec::new();
    for (device, seed) in [(&gpu, 1), (&cpu, 100)] {
        let mut of_device = GradientsParams::new();
        for (bias, seed) in model.biases.iter().zip(seed..) {
            of_device.register(bias.id, vector(&noise(bias.val().dims()[0], seed), device));
        }
        grads.grads.push((of_device, device.clone()));
    }
    for (index, seed) in (0..model.biases.len()).zip(1..) {
        let length = model.biases[index].val().dims()[0];
        let sum = noise(length, seed).iter().zip(noise(length, seed + 99)).map(|(a, b)| a + b).collect();
        expected.push(sum);
    }
    let clipped = clipper(Clip::by_global_norm(1.0)).clip_multi(&mut grads, &model).unwrap();
    let mut after = Vec::new();
    let mut places = Vec::new();
    for bias in &model.biases {
        let (sum, device) = grads.remove::<1>(bias.id).unwrap();
        assert_eq!(sum.device(), device);
        places.push(device);
        after.push(values(sum));
    }
    assert_clipped(&expected, &after, clipped.norm(), 1.0);
    // Burn's sum chooses the device by the parameter's id.
    let chosen = |id: burn::module::ParamId| usize::try_from(id.val() % 2).unwrap();
    let chosen: Vec<_> = model.biases.iter().map(|bias| [&gpu, &cpu][chosen(bias.id)].clone()).collect();
    assert_eq!(places, chosen);
}

#[test]
fn checkpoints_fit_the_model_with_and_without_clipping() {
    let device = Device::flex().autodiff();
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("checkpoints-of-a-model");
    let _ = std::fs::remove_dir_all(&directory);
    let (log, unlimited) = (Log::default(), f64::INFINITY);
    let plain = SupervisedTraining::new(&directory, loader(items()), loader(items()))
        .with_application_logger(None)
        .with_metric_logger(Logger(log.clone()))
        .with_default_checkpointers()
        .with_checkpointing_strategy(KeepLastNCheckpoints::new(5));
    let result = plain.launch(Learner::new(Regression::new(&device), sgd(), LEARNING_RATE));
    let (_, after_one) = simulate([0.0; 8], &batches(), unlimited);
    assert_close(&result.model.parameters(), &after_one, "parameter after one epoch");

    // Continue from the checkpoint, with clipping.
    let clipped = SupervisedTraining::new(&directory, loader(items()), loader(items()))
        .with_application_logger(None)
        .with_metric_logger(Logger(log.clone()))
        .with_default_checkpointers()
        .with_checkpointing_strategy(KeepLastNCheckpoints::new(5))
        .checkpoint(1)
        .num_epochs(2);
    let result = clipped.launch(Learner::new(clipping(&device), sgd(), LEARNING_RATE));
    let (_, after_two) = simulate(after_one, &batches(), f64::from(MAX_NORM));
    assert_close(&result.model.inner().parameters(), &after_two, "parameter after two epochs");

    // The other direction: load the checkpoint of the clipping model into the plain model.
    let restored = Regression::new(&device).load_file(directory.join("checkpoint").join("model-2.bpk"));
    assert_eq!(restored.parameters(), result.model.inner().parameters());
    assert_eq!(
        restored.to_string(),
        Clipping::new(restored.clone(), clipper(Clip::by_value(1.0)), Interrupter::new()).to_string()
    );
}

/// Returns the training set with an infinity in one batch.
fn poisoned(batch: usize) -> Vec<Item> {
    let mut items = items();
    items[batch * BATCH][0] = f32::INFINITY;
    items
}

#[test]
fn a_skipped_step_is_not_made() {
    for device in devices() {
        let log = Log::default();
        let clipper = clipper(Clip::by_global_norm(MAX_NORM).non_finite(NonFinite::Skip));
        let model = Clipping::new(Regression::new(&device.autodiff()), clipper, Interrupter::new());
        let result = launch(training(&log, poisoned(2)), model);
        assert!(result.error.is_none());
        let mut steps = batches();
        steps.remove(2);
        let (_, parameters) = simulate([0.0; 8], &steps, f64::from(MAX_NORM));
        assert_close(&result.model.inner().parameters(), &parameters, "parameter");
        let norms = logged(&log, "Gradient norm");
        assert_eq!(norms.len(), 6);
        assert!(norms.iter().enumerate().all(|(step, norm)| norm.is_finite() == (step != 2)), "{norms:?}");
    }
}

#[test]
fn an_error_stops_the_training_before_the_step() {
    for device in devices() {
        let log = Log::default();
        let training = training(&log, poisoned(3));
        let clipper = clipper(Clip::by_global_norm(MAX_NORM).non_finite(NonFinite::Error));
        let model = Clipping::new(Regression::new(&device.autodiff()), clipper, training.interrupter());
        let result = launch(training.num_epochs(50), model);
        let error = result.error.expect("an error").to_string();
        assert!(error.contains("weight is the first"), "{error}");
        let (_, parameters) = simulate([0.0; 8], &batches()[..3], f64::from(MAX_NORM));
        assert_close(&result.model.inner().parameters(), &parameters, "parameter");
        let error = result.model.into_inner().unwrap_err();
        assert!(matches!(&*error, Error::NonFinite { parameter: Some(path) } if path == "weight"), "{error}");
    }
}

/// A model that scales its loss. The clipper that `Clipping` uses is a clone of its own.
#[derive(Module, Debug)]
struct Scaled {
    inner: Regression,
    #[module(skip)]
    clipper: GradClipper,
}

impl TrainStep for Scaled {
    type Input = Batch;
    type Output = RegressionOutput;

    fn step(&self, batch: Batch) -> TrainOutput<RegressionOutput> {
        let outcome = self.inner.outcome(batch);
        let loss = self.clipper.scale_loss(outcome.loss.clone()).expect("a dynamic loss scale");
        TrainOutput::new(self, loss.backward(), outcome)
    }
}

impl InferenceStep for Scaled {
    type Input = Batch;
    type Output = RegressionOutput;

    fn step(&self, batch: Batch) -> RegressionOutput {
        self.inner.outcome(batch)
    }
}

/// The gradients of the first step overflow, and the later steps have another scale.
#[test]
fn a_loss_scale_adapts_itself() {
    let scale = LossScale::new(2.0_f32.powi(127)).unwrap().growth(2.0, 3).unwrap();
    let clip = Clip::by_global_norm(MAX_NORM).dynamic_loss_scale(scale.backoff(2.0_f32.powi(-110)).unwrap());
    for device in devices() {
        let device = device.autodiff();
        let multi = ExecutionStrategy::multi(vec![device.clone(); 2], MultiDeviceOptim::OptimSharded);
        let (items, windows) = (items(), batches());
        let (first, second) = items.split_at(ITEMS / 2);
        let of_workers = first.chunks(BATCH).zip(second.chunks(BATCH));
        let cases: [(_, usize, Vec<Vec<Vec<Item>>>); 3] = [
            (None, 1, batches()),
            (None, 2, windows.chunks(2).map(<[_]>::concat).collect()),
            (Some(multi), 1, of_workers.map(|(a, b)| vec![a.to_vec(), b.to_vec()]).collect()),
        ];
        for (strategy, accumulation, steps) in cases {
            let log = Log::default();
            let mut training = training(&log, items.clone()).num_epochs(3);
            if let Some(strategy) = strategy {
                training = training.with_training_strategy(TrainingStrategy::Default(strategy));
            }
            if accumulation > 1 {
                training = training.grads_accumulation(accumulation);
            }
            let clipper = clipper(clip);
            let model = Scaled { inner: Regression::new(&device), clipper: clipper.clone() };
            let model = Clipping::new(model, clipper.clone(), training.interrupter());
            let training = training.metric_train_numeric(model.grad_norm());
            let result = training.launch(Learner::new(model, sgd(), LEARNING_RATE));
            assert!(result.error.is_none(), "{:?}", result.error);
            let steps = [steps.clone(), steps.clone(), steps].concat();
            let (norms, parameters) = simulate([0.0; 8], &steps[1..], f64::from(MAX_NORM));
            assert_close(&logged(&log, "Gradient norm")[1..], &norms, "the logged norm of step");
            assert_close(&result.model.inner().inner.parameters(), &parameters, "parameter");
            let counts = clipper.step_counts().unwrap()[0];
            assert_eq!((counts.steps as usize, counts.skipped), (steps.len(), 1));
            // It grows after every third good step.
            let grown = i32::try_from((steps.len() - 1) / 3).unwrap();
            assert_eq!(clipper.loss_scale().unwrap().scale(), 2.0_f32.powi(17 + grown));
        }
    }
}

/// A model whose gradients cannot be clipped, because they are quantized.
#[derive(Module, Debug)]
struct Quantized {
    inner: Regression,
}

impl TrainStep for Quantized {
    type Input = Batch;
    type Output = RegressionOutput;

    fn step(&self, batch: Batch) -> TrainOutput<RegressionOutput> {
        let outcome = self.inner.outcome(batch);
        let mut grads = GradientsParams::new();
        let gradient = Tensor::<1>::ones([32], &Device::flex()).quantize_dynamic(&QuantScheme::default());
        grads.register(self.inner.bias.id, gradient);
        TrainOutput { grads, item: outcome }
    }
}

impl InferenceStep for Quantized {
    type Input = Batch;
    type Output = RegressionOutput;

    fn step(&self, batch: Batch) -> RegressionOutput {
        self.inner.outcome(batch)
    }
}

#[test]
fn gradients_that_cannot_be_clipped_stop_the_training() {
    let model = Quantized { inner: Regression::new(&Device::flex().autodiff()) };
    let before = model.inner.parameters();
    let training = training(&Log::default(), items());
    let clipper = clipper(Clip::by_global_norm(1.0));
    let model = Clipping::new(model, clipper, training.interrupter());
    let result = training.num_epochs(50).launch(Learner::new(model, sgd(), LEARNING_RATE));
    let error = result.error.expect("an error").to_string();
    assert!(error.contains("inner.bias"), "{error}");
    assert_eq!(result.model.inner().inner.parameters(), before, "no step was made");
}

#[test]
fn no_step_follows_an_error_if_the_interrupter_is_not_connected() {
    let model = Quantized { inner: Regression::new(&Device::flex().autodiff()) };
    let before = model.inner.parameters();
    let model = Clipping::new(model, clipper(Clip::by_global_norm(1.0)), Interrupter::new());
    let training = training(&Log::default(), items()).num_epochs(2);
    let result = training.launch(Learner::new(model, sgd(), LEARNING_RATE));
    assert_eq!(result.model.inner().inner.parameters(), before);
    let error = result.model.into_inner().unwrap_err();
    assert!(error.to_string().contains("inner.bias"), "{error}");
}
