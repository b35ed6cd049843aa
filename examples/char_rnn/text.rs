//! The training text as tokens, sampling from the network, and a random number generator.

use std::collections::HashMap;

use super::{BATCH, HIDDEN, LENGTH, ParameterLayout};

/// The sampling temperature. Below 1, likely characters are sampled more often.
const TEMPERATURE: f32 = 0.5;

/// A text with a vocabulary of characters.
pub(crate) struct Text {
    /// The vocabulary, sorted.
    pub(crate) characters: Vec<char>,
    /// The text, as indices into `characters`.
    pub(crate) tokens: Vec<u32>,
}

impl Text {
    /// Loads `examples/data/poems.txt`, in lower case.
    pub(crate) fn load() -> Self {
        let text = include_str!("../data/poems.txt").to_lowercase();
        let mut characters: Vec<char> = text.chars().collect();
        characters.sort_unstable();
        characters.dedup();
        let token_of: HashMap<char, u32> = characters.iter().copied().zip(0..).collect();
        let tokens = text.chars().map(|character| token_of[&character]).collect();
        Self { characters, tokens }
    }

    /// Samples sequences of `LENGTH` tokens, each with the token that follows: `[BATCH, LENGTH + 1]`.
    pub(crate) fn batch(&self, random: &mut Random) -> Vec<u32> {
        let start = |_| random.below(self.tokens.len() - LENGTH);
        let starts: Vec<_> = (0..BATCH).map(start).collect();
        starts.into_iter().flat_map(|start| &self.tokens[start..=start + LENGTH]).copied().collect()
    }

    /// Returns the loss of a uniform prediction.
    pub(crate) fn uniform_loss(&self) -> f32 {
        (self.characters.len() as f32).ln()
    }

    /// Samples `len` characters that follow `prompt`. Runs the forward pass on the host.
    pub(crate) fn sample(&self, parameters: &[f32], prompt: &str, len: usize) -> String {
        let layout = ParameterLayout::new(self.characters.len());
        let mut random = Random::new(1);
        let mut state = vec![0.0; HIDDEN];
        let mut text: Vec<char> = prompt.chars().collect();
        for position in 0..text.len() + len {
            let Ok(token) = self.characters.binary_search(&text[position]) else { break };
            state = (0..HIDDEN)
                .map(|unit| {
                    let weight = |k: usize| parameters[layout.weight + k * HIDDEN + unit];
                    let recurrent: f32 = (0..HIDDEN).map(|k| weight(k) * state[k]).sum();
                    let input = parameters[token * HIDDEN + unit] + parameters[layout.bias + unit];
                    (input + recurrent).max(0.0)
                })
                .collect();
            if position + 1 == text.len() {
                let logit = |v: usize| {
                    let head = &parameters[layout.head + v * HIDDEN..][..HIDDEN];
                    let sum: f32 = head.iter().zip(&state).map(|(weight, h)| weight * h).sum();
                    (sum + parameters[layout.head_bias + v]) / TEMPERATURE
                };
                let logits: Vec<f32> = (0..self.characters.len()).map(logit).collect();
                text.push(self.characters[random.categorical(&logits)]);
            }
        }
        text.into_iter().map(|character| if character == '\n' { '/' } else { character }).collect()
    }
}

/// xorshift64* (Vigna 2016). Gives the same numbers on every platform.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a uniform number in [0, 1).
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Returns an integer in [0, bound).
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from((self.next() >> 32) % bound as u64).expect("less than bound, a usize")
    }

    /// Returns a number that is close to standard normal: the sum of twelve uniform numbers, minus its mean.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    /// Samples an index from softmax(`logits`).
    fn categorical(&mut self, logits: &[f32]) -> usize {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = logits.iter().map(|logit| (logit - max).exp()).collect();
        let mut remaining = self.uniform() * weights.iter().sum::<f32>();
        let index = weights.iter().position(|weight| {
            remaining -= weight;
            remaining < 0.0
        });
        index.unwrap_or(0)
    }
}
