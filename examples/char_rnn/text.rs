//! The text, as numbers; chance; and what the network writes.

use std::collections::HashMap;

use super::{BATCH, HIDDEN, LENGTH, Places};

/// A text, and which characters are in it.
pub(crate) struct Text {
    pub(crate) characters: Vec<char>,
    /// Indices into them.
    pub(crate) tokens: Vec<u32>,
}

impl Text {
    /// The poems that ship with the examples, in lower case.
    pub(crate) fn read() -> Self {
        let text = include_str!("../data/poems.txt").to_lowercase();
        let mut characters: Vec<char> = text.chars().collect();
        characters.sort_unstable();
        characters.dedup();
        let number_of: HashMap<char, u32> = characters.iter().copied().zip(0..).collect();
        let tokens = text.chars().map(|character| number_of[&character]).collect();
        Self { characters, tokens }
    }

    /// Sequences from anywhere, and the character after each.
    pub(crate) fn batch(&self, random: &mut Random) -> Vec<u32> {
        let start = |_| random.below(self.tokens.len() - LENGTH);
        let starts: Vec<_> = (0..BATCH).map(start).collect();
        starts.into_iter().flat_map(|start| &self.tokens[start..=start + LENGTH]).copied().collect()
    }

    /// The loss of who knows nothing.
    pub(crate) fn guessing(&self) -> f32 {
        (self.characters.len() as f32).ln()
    }

    /// What a network with these parameters writes after a beginning: the forward pass again, on the host.
    pub(crate) fn continued(&self, parameters: &[f32], beginning: &str, len: usize) -> String {
        let places = Places::new(self.characters.len());
        let mut random = Random::new(1);
        let mut state = vec![0.0; HIDDEN];
        let mut written: Vec<char> = beginning.chars().collect();
        for at in 0..beginning.chars().count() + len {
            let Ok(token) = self.characters.binary_search(&written[at]) else { break };
            state = (0..HIDDEN)
                .map(|unit| {
                    let weight = |k: usize| parameters[places.weight + k * HIDDEN + unit];
                    let recurrent: f32 = (0..HIDDEN).map(|k| weight(k) * state[k]).sum();
                    let input = parameters[token * HIDDEN + unit] + parameters[places.bias + unit];
                    (input + recurrent).max(0.0)
                })
                .collect();
            if at + 1 == written.len() {
                let logit = |v: usize| {
                    let head = &parameters[places.head + v * HIDDEN..][..HIDDEN];
                    let sum: f32 = head.iter().zip(&state).map(|(weight, h)| weight * h).sum();
                    // A little colder than it was trained, so that it writes what it is sure of.
                    (sum + parameters[places.head_bias + v]) / 0.5
                };
                let logits: Vec<f32> = (0..self.characters.len()).map(logit).collect();
                written.push(self.characters[random.among(&logits)]);
            }
        }
        written.into_iter().map(|character| if character == '\n' { '/' } else { character }).collect()
    }
}

/// xorshift64* (Vigna 2016): the same numbers everywhere.
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

    /// From 0 to below 1.
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from((self.next() >> 32) % bound as u64).expect("it is less than the bound")
    }

    /// Of mean 0 and deviation 1: twelve uniform numbers, which is near enough.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    /// An index, with the probability that the softmax of these gives it.
    fn among(&mut self, logits: &[f32]) -> usize {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
        let mut left = self.uniform() * weights.iter().sum::<f32>();
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        chosen.unwrap_or(0)
    }
}
