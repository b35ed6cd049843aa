//! Cases from the test suites and the documentation of PyTorch, optax, Apex and TensorFlow.

use std::iter::repeat_n;

use gradclip::Epsilon;

use super::{INF, NAN, coefficient_only, options};
use crate::case::Method::{Norm, Rms, Tensor};
use crate::case::{Case, Expect, Options, Peer};

pub(crate) fn cases() -> Vec<Case> {
    [pytorch(), optax(), apex(), examples()].into_iter().flatten().collect()
}

/// PyTorch's test of non-finite norms: a 10 x 10 gradient with one number in all rows or in a single row, alone or
/// after another gradient.
fn pytorch() -> Vec<Case> {
    let numbers = [2e10, 2e25, f32::INFINITY, f32::NAN];
    let mut cases = Vec::new();
    for number in numbers.into_iter().flat_map(|number| [number, -number]) {
        for (where_, rows) in [("everywhere", 0..10), ("in_one_row", 1..2)] {
            for (among, prefix) in [("alone", None), ("behind_another", Some(vec![1.0]))] {
                let mut tensor = vec![0.0; 100];
                tensor[10 * rows.start..10 * rows.end].fill(number);
                let gradients: Vec<_> = prefix.into_iter().chain([tensor]).collect();
                // In PyTorch the squares of 2e25 overflow, and finite elements become zero.
                let expect = if number.abs() == 2e25 {
                    let clipped = gradients.iter().map(|gradient| gradient.iter().map(|g| g * 0.0).collect());
                    Expect::Better(Peer { total_norm: Some(f32::INFINITY), clipped: clipped.collect() })
                } else {
                    Expect::Definition
                };
                let sign = if number.is_sign_negative() { "-" } else { "" };
                let name = format!("pytorch/{sign}{:e}/{where_}/{among}", number.abs());
                cases.push(Case::new(name, move || gradients.clone(), Norm(1.0), expect));
            }
        }
    }
    cases
}

/// Repeated clips, to 1, 1/2, 1/3, ...
fn optax() -> Vec<Case> {
    let mut case = Case::of("optax/repeated", &[&[500.0, 5.0], &[300.0, 3.0]], Norm(1.0), Expect::Definition);
    case.clips = (1..=50_u8).map(|i| Norm(1.0 / f32::from(i)).into()).collect();
    vec![case]
}

/// The sizes of Apex's test of multi-tensor L2 norms: each pair once and 55 times, the largest pair only once.
fn apex() -> Vec<Case> {
    let pairs = [
        (7777 * 77, 555 * 555),
        (777, 555),
        (555, 65537),
        (65537, 555),
        (555, 65536),
        (65536, 555),
        (33333, 555),
        (555, 33333),
    ];
    let mut cases = Vec::new();
    for (a, b) in pairs {
        for times in [1, 55] {
            if a * times < 10_000_000 {
                let gradients = move || {
                    let pair = [a, b].map(|len| vec![4.0; len]);
                    repeat_n(pair, times).flatten().collect()
                };
                let name = format!("apex/{a},{b}/{times}");
                cases.push(Case::new(name, gradients, coefficient_only(1.0), Expect::Definition));
            }
        }
    }
    cases
}

/// Small examples.
fn examples() -> Vec<Case> {
    let peer = |name: &str, gradients: &[&[f32]], options: Options, clipped: &[&[f32]]| {
        let clipped = clipped.iter().map(|gradient| gradient.to_vec()).collect();
        Case::of(name, gradients, options, Expect::Rounded(Peer { total_norm: None, clipped }))
    };
    let exactly = |method| options(method).epsilon(Epsilon::None);
    let x: &[f32] = &[-3.0, 0.0, 0.0, 4.0, 0.0, 0.0];
    let (one, two): (&[f32], &[f32]) = (&[-2.0, 0.0, 0.0, 4.0, 0.0, 0.0], &[1.0, -2.0]);
    // The mean squares are 12.5, 0.25 and 2.
    let blocks: &[&[f32]] = &[&[3.0, 4.0], &[0.5, -0.5], &[2.0, 0.0]];
    let (root, of_two) = (12.5_f32.sqrt(), 2.0_f32.sqrt());
    vec![
        peer("tensorflow/clip_by_norm", &[x], exactly(Tensor(4.0)), &[&[-2.4, 0.0, 0.0, 3.2, 0.0, 0.0]]),
        peer("tensorflow/clip_by_norm/within", &[x], exactly(Tensor(6.0)), &[x]),
        peer("tensorflow/clip_by_norm/at_the_limit", &[x], exactly(Tensor(5.0)), &[x]),
        peer("tensorflow/clip_by_norm/zeros", &[&[0.0; 4]], exactly(Tensor(4.0)), &[&[0.0; 4]]),
        peer(
            "tensorflow/clip_by_global_norm",
            &[one, two],
            exactly(Norm(4.0)),
            &[&[-1.6, 0.0, 0.0, 3.2, 0.0, 0.0], &[0.8, -1.6]],
        ),
        peer(
            "optax/clip_by_block_rms",
            blocks,
            options(Rms(1.0)),
            &[&[3.0 / root, 4.0 / root], &[0.5, -0.5], &[2.0 / of_two, 0.0]],
        ),
        peer(
            "optax/clip_by_block_rms/0.25",
            blocks,
            options(Rms(0.25)),
            &[&[0.75 / root, 1.0 / root], &[0.25, -0.25], &[0.5 / of_two, 0.0]],
        ),
        // The unscaled norm is 5, which the clip halves.
        peer(
            "pytorch/unscale_and_clip",
            &[&[3072.0], &[-4096.0]],
            exactly(Norm(2.5)).loss_scale(1024.0),
            &[&[1.5], &[-2.0]],
        ),
        peer(
            "pytorch/error_if_nonfinite=False",
            &[&[1.0, INF], &[2.0]],
            options(Norm(1.0)),
            &[&[0.0, NAN], &[0.0]],
        ),
    ]
}
