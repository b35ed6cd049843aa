//! Writes a file of exploded gradients: `cargo run --example exploding_rnn -- GRADS.safetensors`
//!
//! A vanilla tanh RNN learns the adding problem (Hochreiter and Schmidhuber 1997: sum the two marked numbers of a
//! long sequence) by plain SGD without clipping. Its recurrent weight starts with a spectral radius above 1, so
//! gradients grow at each step of backpropagation through time (Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063).
//! The example saves the gradients of the training step with the largest finite norm.

use std::{env, error::Error, path::Path};

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

const HIDDEN: usize = 64;
const INPUTS: usize = 2;
const LENGTH: usize = 100;
const BATCH: usize = 16;
const STEPS: usize = 30;
const LEARNING_RATE: f32 = 0.01;
const SPECTRAL_RADIUS: f32 = 2.0;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args_os().nth(1).ok_or("usage: exploding_rnn GRADS.safetensors")?;
    let mut random = Xorshift(SEED);
    let mut model = Parameters::random(&mut random);
    let mut largest = (0, 0.0, Parameters::zeros());

    println!("step        loss  gradient norm");
    for step in 0..STEPS {
        let (loss, gradients) = model.batch_gradients(&mut random);
        let norm = gradients.norm();
        println!("{step:4}  {loss:10.4}  {norm:13.4e}");
        model.sgd_step(&gradients);
        if norm.is_finite() && norm > largest.1 {
            largest = (step, norm, gradients);
        }
    }
    let (step, norm, gradients) = largest;
    gradients.save(path.as_ref(), step)?;
    println!("saved the gradients of step {step}, norm {norm:e}");
    Ok(())
}

/// The parameters of the network, or their gradients. Matrices are row-major.
struct Parameters {
    weight_ih: Vec<f32>,
    weight_hh: Vec<f32>,
    bias_ih: Vec<f32>,
    head_weight: Vec<f32>,
    head_bias: Vec<f32>,
}

/// The hidden state before the first time step, which is zero, and after each.
type States = Vec<[f32; HIDDEN]>;

impl Parameters {
    fn zeros() -> Self {
        Self {
            weight_ih: vec![0.0; HIDDEN * INPUTS],
            weight_hh: vec![0.0; HIDDEN * HIDDEN],
            bias_ih: vec![0.0; HIDDEN],
            head_weight: vec![0.0; HIDDEN],
            head_bias: vec![0.0],
        }
    }

    fn random(random: &mut Xorshift) -> Self {
        // Circular law: a matrix of independent entries with variance r²/n has a spectral radius of about r.
        let recurrent_deviation = SPECTRAL_RADIUS / (HIDDEN as f32).sqrt();
        let mut normal = |n, deviation| (0..n).map(|_| deviation * random.normal()).collect();
        Self {
            weight_ih: normal(HIDDEN * INPUTS, 1.0),
            weight_hh: normal(HIDDEN * HIDDEN, recurrent_deviation),
            head_weight: normal(HIDDEN, (HIDDEN as f32).sqrt().recip()),
            ..Self::zeros()
        }
    }

    /// Returns the name, the shape and the values of each tensor.
    fn named(&self) -> [(&'static str, Vec<usize>, &[f32]); 5] {
        [
            ("rnn.weight_ih_l0", vec![HIDDEN, INPUTS], &self.weight_ih),
            ("rnn.weight_hh_l0", vec![HIDDEN, HIDDEN], &self.weight_hh),
            ("rnn.bias_ih_l0", vec![HIDDEN], &self.bias_ih),
            ("head.weight", vec![1, HIDDEN], &self.head_weight),
            ("head.bias", vec![1], &self.head_bias),
        ]
    }

    /// Samples a batch. Returns the mean of ½(prediction - target)² and its gradients.
    fn batch_gradients(&self, random: &mut Xorshift) -> (f32, Self) {
        let mut gradients = Self::zeros();
        let mut loss = 0.0;
        for _ in 0..BATCH {
            let (inputs, target) = adding_problem(random);
            let states = self.forward(&inputs);
            let error = self.head_bias[0] + dot(&self.head_weight, &states[LENGTH]) - target;
            loss += 0.5 * error * error / BATCH as f32;
            self.backward(&inputs, &states, error / BATCH as f32, &mut gradients);
        }
        (loss, gradients)
    }

    fn forward(&self, inputs: &[[f32; INPUTS]]) -> States {
        let mut states = vec![[0.0; HIDDEN]];
        for (t, input) in inputs.iter().enumerate() {
            let state = std::array::from_fn(|i| {
                let input_term = dot(row(&self.weight_ih, i, INPUTS), input);
                let recurrent_term = dot(row(&self.weight_hh, i, HIDDEN), &states[t]);
                (input_term + recurrent_term + self.bias_ih[i]).tanh()
            });
            states.push(state);
        }
        states
    }

    /// Adds the gradients of one sequence, by backpropagation through time without truncation.
    fn backward(&self, inputs: &[[f32; INPUTS]], states: &States, error: f32, gradients: &mut Self) {
        axpy(error, &states[LENGTH], &mut gradients.head_weight);
        gradients.head_bias[0] += error;

        let mut d_state: [f32; HIDDEN] = std::array::from_fn(|i| error * self.head_weight[i]);
        for t in (0..LENGTH).rev() {
            let mut d_previous = [0.0; HIDDEN];
            for i in 0..HIDDEN {
                let d_preactivation = d_state[i] * (1.0 - states[t + 1][i] * states[t + 1][i]);
                gradients.bias_ih[i] += d_preactivation;
                axpy(d_preactivation, &inputs[t], &mut gradients.weight_ih[i * INPUTS..][..INPUTS]);
                axpy(d_preactivation, &states[t], &mut gradients.weight_hh[i * HIDDEN..][..HIDDEN]);
                axpy(d_preactivation, row(&self.weight_hh, i, HIDDEN), &mut d_previous);
            }
            d_state = d_previous;
        }
    }

    fn sgd_step(&mut self, gradients: &Self) {
        let fields = [
            (&mut self.weight_ih, &gradients.weight_ih),
            (&mut self.weight_hh, &gradients.weight_hh),
            (&mut self.bias_ih, &gradients.bias_ih),
            (&mut self.head_weight, &gradients.head_weight),
            (&mut self.head_bias, &gradients.head_bias),
        ];
        for (weights, gradient) in fields {
            axpy(-LEARNING_RATE, gradient, weights);
        }
    }

    fn norm(&self) -> f64 {
        let elements = self.named().into_iter().flat_map(|(_, _, values)| values);
        elements.map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt()
    }

    fn save(&self, path: &Path, step: usize) -> Result<(), Box<dyn Error>> {
        let bytes = self.named().map(|(name, shape, values)| {
            let bytes: Vec<u8> = values.iter().flat_map(|g| g.to_le_bytes()).collect();
            (name, shape, bytes)
        });
        let mut tensors = Vec::new();
        for (name, shape, bytes) in &bytes {
            tensors.push((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?));
        }
        // Only one metadata entry: the order of several would differ between runs.
        let origin = ("origin".to_owned(), format!("examples/exploding_rnn.rs, step {step}"));
        Ok(serialize_to_file(tensors, Some([origin].into()), path)?)
    }
}

/// Samples a sequence of (number, mark), with one mark in each half. Returns it with the sum of the marked numbers.
fn adding_problem(random: &mut Xorshift) -> (Vec<[f32; INPUTS]>, f32) {
    let mut inputs: Vec<_> = (0..LENGTH).map(|_| [random.uniform(), 0.0]).collect();
    let half = LENGTH / 2;
    let marked = [random.below(half), half + random.below(half)];
    for t in marked {
        inputs[t][1] = 1.0;
    }
    let target = marked.map(|t| inputs[t][0]).iter().sum();
    (inputs, target)
}

fn row(matrix: &[f32], row: usize, width: usize) -> &[f32] {
    &matrix[row * width..][..width]
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// xorshift64 (Marsaglia 2003). Written out here, so that a seed always gives the same gradients.
struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a uniform number in [0, 1).
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Returns an integer in [0, bound).
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("less than bound, a usize")
    }

    /// Returns a number that is close to standard normal: the sum of twelve uniform numbers, minus its mean. Unlike the
    /// Box-Muller transform, it does not depend on the platform's `ln` and `cos`.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}
