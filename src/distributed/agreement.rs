//! Whether all processes clip alike: the options are compared once, and what may change between steps at every step.

use crate::operation::{ByNorm, KIND, Operation, Scope};
use crate::shown::Shown as _;
use crate::{Error, NonFinite};

/// An option, as a number that all processes compare.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    name: &'static str,
    value: Value,
}

/// The value of an option. Its number is finite and exact in an f64.
#[derive(Clone, Copy, Debug)]
enum Value {
    Float(f32),
    Count(u64),
    Choice(usize, &'static [&'static str]),
    /// Compared by a digest, and not shown in an error.
    Digest(u64),
}

impl Value {
    fn number(self) -> f64 {
        match self {
            Self::Float(value) => f64::from(value.to_bits()),
            Self::Count(count) | Self::Digest(count) => count as f64,
            Self::Choice(index, _) => index as f64,
        }
    }

    /// Formats a number that another process sent for the same option. `None` for a digest.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was such an integer")]
    fn show(self, number: f64) -> Option<String> {
        match self {
            Self::Float(_) => Some(f32::from_bits(number as u32).shown()),
            Self::Count(_) => Some(format!("{number}")),
            Self::Choice(_, names) => {
                Some(names.get(number as usize).copied().unwrap_or("unknown").to_owned())
            }
            Self::Digest(_) => None,
        }
    }
}

impl Setting {
    const fn float(name: &'static str, value: f32) -> Self {
        Self { name, value: Value::Float(value) }
    }

    pub(super) const fn count(name: &'static str, count: usize) -> Self {
        Self { name, value: Value::Count(count as u64) }
    }

    const fn choice(name: &'static str, index: usize, names: &'static [&'static str]) -> Self {
        Self { name, value: Value::Choice(index, names) }
    }

    pub(super) const fn digest(name: &'static str, digest: u64) -> Self {
        Self { name, value: Value::Digest(digest) }
    }

    /// Compares an option by its text.
    fn text(name: &'static str, value: &impl std::fmt::Debug) -> Self {
        Self::digest(name, digest_of(value))
    }
}

const SWITCH: &[&str] = &["off", "on"];

/// Returns the options of a clip, except for limits and the loss scale. The version of the protocol comes first.
pub(super) fn options(norm: &ByNorm, groups: usize) -> Vec<Setting> {
    // The pattern names every field, so that a new option does not compile until it is compared.
    let ByNorm {
        norm_type,
        scope,
        max_norm: _,
        epsilon,
        non_finite,
        inverse_scale: _,
        coefficient_only,
        tensor_stats,
        count_steps,
        z_clip,
        auto_clip,
        skip_above,
        dynamic_loss_scale,
    } = norm;
    let scope = match scope {
        Scope::Global => 0,
        Scope::Tensor => 1,
        Scope::TensorRms => 2,
        Scope::Parameter { .. } => 3,
        Scope::Supplied => 4,
    };
    let policy = match non_finite {
        NonFinite::Propagate => 0,
        NonFinite::Skip => 1,
        NonFinite::Error => 2,
        NonFinite::Zero => 3,
        NonFinite::Poison => 4,
    };
    let switch = |name, on: bool| Setting::choice(name, on.into(), SWITCH);
    vec![
        Setting::count("the version of gradclip's protocol", 1),
        Setting::count("the number of groups", groups),
        Setting::choice(
            KIND,
            scope,
            &["by_global_norm", "by_norm", "by_rms", "by_parameter_norm", "by_supplied_norm"],
        ),
        Setting::float("norm_type", norm_type.p()),
        Setting::float("epsilon", *epsilon),
        Setting::choice("non_finite", policy, &["propagate", "skip", "error", "zero", "poison"]),
        switch("coefficient_only", *coefficient_only),
        switch("tensor_stats", *tensor_stats),
        switch("count_steps", *count_steps),
        Setting::text("z_clip", z_clip),
        Setting::text("auto_clip", auto_clip),
        Setting::text("skip_above", skip_above),
        Setting::text("dynamic_loss_scale", dynamic_loss_scale),
    ]
}

/// Returns what may change between steps: the limits, the loss scale and restored state.
pub(super) fn changeable(operations: &[Operation], restored: Restored) -> [Setting; CHANGEABLE] {
    let limits: Vec<f32> = operations.iter().map(Operation::limit).collect();
    let inverse_scale = match operations.first() {
        Some(Operation::Norm(norm)) => norm.inverse_scale,
        _ => 1.0,
    };
    let limits = match limits[..] {
        [limit] => Setting::float("max_norm", limit),
        _ => Setting::digest("max_norm of the groups", digest(bytemuck::cast_slice(&limits))),
    };
    [
        limits,
        Setting::float("the inverse of the loss scale", inverse_scale),
        Setting::digest("the restored step counts", restored.step_counts),
        Setting::digest("the restored norm histories", restored.histories),
        Setting::digest("the restored norm windows", restored.norm_windows),
        Setting::digest("the restored loss scale", restored.loss_scale),
    ]
}

/// The number of settings that may change between steps.
pub(super) const CHANGEABLE: usize = 6;

/// Digests of the state that was restored last; 0 for none. Ranks that restored the same state keep the same state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Restored {
    pub(super) step_counts: u64,
    pub(super) histories: u64,
    pub(super) norm_windows: u64,
    pub(super) loss_scale: u64,
}

/// Returns the digest of restored values.
pub(super) fn digest_of(values: &impl std::fmt::Debug) -> u64 {
    digest(format!("{values:?}").as_bytes())
}

/// The numbers of a list of settings among maxima: each number and its negative, so that the maxima also hold the minimum.
pub(super) fn numbers(settings: &[Setting]) -> Vec<f64> {
    settings.iter().flat_map(|setting| [setting.value.number(), -setting.value.number()]).collect()
}

/// The numbers of a process that takes no part in the comparison.
pub(super) fn abstention(settings: usize) -> Vec<f64> {
    vec![f64::MIN; 2 * settings]
}

/// Compares the settings of all processes, given the maxima of their [`numbers`].
///
/// # Errors
///
/// [`Error::RanksDiffer`] with the first setting that differs.
pub(super) fn check(settings: &[Setting], maxima: &[f64]) -> Result<(), Error> {
    for (setting, maxima) in settings.iter().zip(maxima.chunks_exact(2)) {
        let [largest, smallest] = [maxima[0], -maxima[1]];
        if largest == smallest || largest == f64::MIN {
            continue;
        }
        let given = [smallest, largest].map(|number| setting.value.show(number));
        let given = match given {
            [Some(one), Some(other)] => Some([one, other]),
            _ => None,
        };
        return Err(Error::RanksDiffer { option: setting.name, given });
    }
    Ok(())
}

/// Returns the 53 leading bits of the FNV-1a hash: an integer that an f64 holds. The hash is the same in every build of every
/// process.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME)) >> 11
}
