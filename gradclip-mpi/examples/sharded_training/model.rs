//! The model: `y = v · tanh(W x + b) + c`, its gradients on the host, and a task with broken labels.

/// The number of micro-batches of a step, for any number of ranks.
pub(crate) const MICRO_BATCHES: usize = 8;
/// The first label of each such step is broken.
pub(crate) const BROKEN_EVERY: usize = 25;

const SAMPLES: usize = 8;
const INPUTS: usize = 32;
const HIDDEN: usize = 512;
const BROKEN_LABEL: f32 = 1e4;

// Where the parameters lie. W comes first.
const BIASES: usize = HIDDEN * INPUTS;
const OUTPUT: usize = BIASES + HIDDEN;
const PARAMETERS: usize = OUTPUT + HIDDEN + 1;

pub(crate) struct Model {
    pub(crate) parameters: Vec<f32>,
    /// The direction of inputs that decides the label.
    teacher: Vec<f32>,
}

impl Model {
    /// Creates the same model on every rank.
    pub(crate) fn new() -> Self {
        let mut numbers = Numbers(1);
        let weight = |scale: f32| move |uniform: f32| uniform * (3.0 / scale).sqrt();
        let mut parameters = vec![0.0; PARAMETERS];
        parameters[..BIASES].fill_with(|| weight(INPUTS as f32)(numbers.next()));
        parameters[OUTPUT..PARAMETERS - 1].fill_with(|| weight(HIDDEN as f32)(numbers.next()));
        let teacher = (0..INPUTS).map(|_| numbers.next()).collect();
        Self { parameters, teacher }
    }

    /// Computes the loss of a micro-batch, without a broken label, and the gradient of the step's loss. Each micro-batch has samples of
    /// its own, which depend only on the arguments.
    pub(crate) fn backward(&self, step: usize, micro_batch: usize) -> (f32, Vec<f32>) {
        let mut numbers = Numbers((step * MICRO_BATCHES + micro_batch) as u64 + 2);
        let (hidden_layer, output_layer) = self.parameters.split_at(OUTPUT);
        let (weights, biases) = hidden_layer.split_at(BIASES);
        let (output_weights, output_bias) = output_layer.split_at(HIDDEN);
        let mut gradient = vec![0.0; PARAMETERS];
        let mut loss = 0.0;
        for sample in 0..SAMPLES {
            let input: Vec<f32> = (0..INPUTS).map(|_| numbers.next()).collect();
            let is_broken = step.is_multiple_of(BROKEN_EVERY) && micro_batch == 0 && sample == 0;
            let label = if is_broken { BROKEN_LABEL } else { (0.8 * dot(&self.teacher, &input)).tanh() };
            let hidden: Vec<f32> = weights
                .chunks_exact(INPUTS)
                .zip(biases)
                .map(|(row, bias)| (dot(row, &input) + bias).tanh())
                .collect();
            let error = dot(output_weights, &hidden) + output_bias[0] - label;
            if !is_broken {
                loss += error * error / SAMPLES as f32;
            }

            let slope = 2.0 * error / (SAMPLES * MICRO_BATCHES) as f32;
            for (index, (activation, weight)) in hidden.iter().zip(output_weights).enumerate() {
                gradient[OUTPUT + index] += slope * activation;
                let hidden_slope = slope * weight * (1.0 - activation * activation);
                gradient[BIASES + index] += hidden_slope;
                for (to, x) in gradient[index * INPUTS..][..INPUTS].iter_mut().zip(&input) {
                    *to += hidden_slope * x;
                }
            }
            gradient[PARAMETERS - 1] += slope;
        }
        (loss, gradient)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Random numbers that are the same on all ranks: the generator SplitMix64.
struct Numbers(u64);

impl Numbers {
    /// Returns a number in -1..1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
