//! The options of `gradclip clip` that define the clip, and their conversion to the library's [`Clip`].

use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use gradclip::{Clip, NonFinite, NormType};
use gradclip_measure::text::quoted;

use crate::glob::matches;

/// The error for an invalid limit.
const INVALID_LIMIT: &str = "it must be a number, 0 or greater";

#[derive(clap::Args)]
pub(crate) struct ClipOptions {
    #[command(flatten)]
    limit: Limit,

    /// The norm to limit, (Σ |g|^P)^(1/P): 2, 1, inf, -inf, 0 or any other number
    #[arg(
        long,
        value_name = "P",
        default_value = "2",
        value_parser = norm_type,
        conflicts_with = "value",
        allow_hyphen_values = true
    )]
    norm_type: NormType,

    /// Clip each tensor separately, by its own norm and coefficient
    #[arg(long, conflicts_with = "value")]
    per_tensor: bool,

    /// How to handle gradients that contain an infinity or a NaN
    #[arg(long, value_enum, default_value_t, value_name = "POLICY", conflicts_with = "value")]
    nonfinite: Policy,

    /// Undo a loss scale: the loss was multiplied by S before the backward pass
    #[arg(long, value_name = "S", value_parser = loss_scale, allow_hyphen_values = true)]
    loss_scale: Option<f32>,

    /// Clip the tensors whose names match PATTERN as a group with its own LIMIT; may be repeated
    ///
    /// In PATTERN, * matches any characters and ? matches one character. A tensor belongs to the first group whose
    /// pattern matches; --max-norm limits the tensors that match no pattern. A group without tensors is an error.
    #[arg(long, value_name = "PATTERN=LIMIT", conflicts_with = "value")]
    groups: Vec<Group>,

    /// Exclude the tensors whose names match PATTERN from measuring and clipping; may be repeated
    ///
    /// Patterns have the syntax of --groups and take precedence over groups. Excluded tensors may have any dtype. A
    /// pattern that matches no tensor is an error.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,

    /// Use NORM as the total norm instead of measuring it, for gradients that are part of a larger set
    #[arg(
        long,
        value_name = "NORM",
        value_parser = total_norm,
        requires = "max_norm",
        conflicts_with_all = ["value", "norm_type", "per_tensor", "groups"],
        allow_hyphen_values = true
    )]
    total_norm: Option<f32>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Limit {
    /// Scale all tensors by one coefficient so that their total norm is at most NORM
    #[arg(long, value_name = "NORM", value_parser = limit, allow_hyphen_values = true)]
    max_norm: Option<f32>,

    /// Clamp every element to [-VALUE, VALUE]
    #[arg(long, value_parser = limit, allow_hyphen_values = true)]
    value: Option<f32>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Scale them like finite gradients, as PyTorch does
    #[default]
    Propagate,
    /// Leave them unchanged
    Skip,
    /// Set them to 0
    Zero,
    /// Set them to NaN
    Poison,
    /// Fail, name the first such tensor, and write nothing
    Error,
}

/// A group of tensors with its own limit.
#[derive(Clone)]
struct Group {
    pattern: String,
    limit: f32,
}

impl ClipOptions {
    /// Returns the pattern of each group. The first group holds the tensors that match no pattern, and has `None`.
    pub(crate) fn patterns(&self) -> impl Iterator<Item = Option<String>> {
        [None].into_iter().chain(self.groups.iter().map(|group| Some(group.pattern.clone())))
    }

    /// Returns the group index of each tensor, or `None` if it is excluded. Fails if a pattern has no effect.
    pub(crate) fn assign<'a>(&self, tensors: impl Iterator<Item = &'a str>) -> Result<Vec<Option<usize>>> {
        let mut is_used = vec![false; self.groups.len() + 1];
        let mut excludes = vec![false; self.exclude.len()];
        let mut matched = vec![false; self.groups.len()];
        let mut assign = |tensor| {
            let mut is_excluded = false;
            for (pattern, excludes) in self.exclude.iter().zip(&mut excludes) {
                if matches(pattern, tensor) {
                    (is_excluded, *excludes) = (true, true);
                }
            }
            let mut first = None;
            for (index, group) in self.groups.iter().enumerate() {
                if matches(&group.pattern, tensor) {
                    matched[index] = true;
                    first = first.or(Some(index));
                }
            }
            let group = first.map_or(0, |index| index + 1);
            (!is_excluded).then(|| {
                is_used[group] = true;
                group
            })
        };
        let groups = tensors.map(&mut assign).collect();
        for (pattern, excludes) in self.exclude.iter().zip(excludes) {
            ensure!(excludes, "--exclude {}: no tensor name matches", quoted(pattern));
        }
        for ((group, matched), used) in self.groups.iter().zip(matched).zip(&is_used[1..]) {
            let pattern = quoted(&group.pattern);
            ensure!(matched, "--groups {pattern}: no tensor name matches");
            ensure!(used, "--groups {pattern}: every matching tensor is excluded or in an earlier group");
        }
        Ok(groups)
    }

    /// Returns the norm of `--total-norm`.
    pub(crate) fn total_norm(&self) -> Option<f32> {
        self.total_norm
    }

    /// Fails if `--total-norm` is not finite and the policy is `error`. This needs no input file.
    pub(crate) fn check_total_norm(&self) -> Result<()> {
        let invalid = self.total_norm.filter(|norm| !norm.is_finite() && self.nonfinite == Policy::Error);
        match invalid {
            Some(norm) => {
                bail!(
                    "--total-norm is {norm}, but --nonfinite error requires a finite norm; nothing was clipped"
                )
            }
            None => Ok(()),
        }
    }

    /// Returns the limit of each group.
    pub(crate) fn limits(&self) -> Vec<f32> {
        let Limit { max_norm, value } = self.limit;
        let first = max_norm.or(value).expect("clap requires one of the two");
        [first].into_iter().chain(self.groups.iter().map(|group| group.limit)).collect()
    }

    /// Returns the clip of each group.
    pub(crate) fn clips(&self) -> Vec<Clip> {
        self.limits().into_iter().map(|limit| self.clip(limit)).collect()
    }

    fn clip(&self, limit: f32) -> Clip {
        let by_norm = |clip: Clip| clip.norm_type(self.norm_type).non_finite(self.nonfinite.into());
        let clip = match self.limit.value {
            Some(_) => Clip::by_value(limit),
            None if self.per_tensor => by_norm(Clip::by_norm(limit)),
            None if self.total_norm.is_some() => by_norm(Clip::by_supplied_norm(limit)),
            None => by_norm(Clip::by_global_norm(limit)),
        };
        self.loss_scale.map_or(clip, |scale| clip.loss_scale(scale))
    }

    /// Returns the clips that measure total norms before and after clipping. Only the first removes the loss scale.
    pub(crate) fn measurement_clips(&self) -> [Clip; 2] {
        let after = Clip::by_global_norm(f32::INFINITY).norm_type(self.norm_type).coefficient_only();
        [self.loss_scale.map_or(after, |scale| after.loss_scale(scale)), after]
    }

    /// Returns the scope of one clip coefficient.
    pub(crate) fn scope(&self) -> Scope {
        match self.limit.value {
            Some(_) => Scope::Element,
            None if self.per_tensor => Scope::Tensor,
            None => Scope::Group,
        }
    }
}

/// The scope of one clip: each element is clamped, each tensor has a coefficient, or each group has one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Element,
    Tensor,
    Group,
}

impl From<Policy> for NonFinite {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Propagate => Self::Propagate,
            Policy::Skip => Self::Skip,
            Policy::Zero => Self::Zero,
            Policy::Poison => Self::Poison,
            Policy::Error => Self::Error,
        }
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, given) =
            text.rsplit_once('=').ok_or("it must have the form PATTERN=LIMIT, as in 'head.*=0.5'")?;
        let of_group = |why| format!("the limit of group {} is {}: {why}", quoted(pattern), quoted(given));
        Ok(Self { pattern: pattern.to_owned(), limit: limit(given).map_err(of_group)? })
    }
}

// The library validates the values. Its messages are replaced, because they name its parameters instead of these
// options.

fn limit(text: &str) -> Result<f32, String> {
    let limit = number(text).map_err(|_| INVALID_LIMIT)?;
    Clip::by_global_norm(limit).checked().map(|_| limit).map_err(|_| INVALID_LIMIT.to_owned())
}

fn loss_scale(text: &str) -> Result<f32, String> {
    let scale = number(text)?;
    let checked = Clip::by_global_norm(1.0).loss_scale(scale).checked();
    checked.map(|_| scale).map_err(|_| "it and its inverse must be positive and finite".into())
}

fn norm_type(text: &str) -> Result<NormType, String> {
    text.parse().map_err(|_| "it must be a number, inf or -inf".into())
}

fn number(text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| "it must be a number".into())
}

/// Parses a norm that was measured elsewhere. It may be infinite or NaN.
fn total_norm(text: &str) -> Result<f32, String> {
    let norm = number(text)?;
    if norm < 0.0 { Err("it must be 0 or greater, or NaN".to_owned()) } else { Ok(norm) }
}
