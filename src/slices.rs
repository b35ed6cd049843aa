//! Clips host slices in one call: on a GPU if there is one, else on the CPU path.
//!
//! The GPU path copies the slices to the device and back. Gradients that are in device memory already belong in a
//! [`ClipPlan`](crate::ClipPlan).
//!
//! Calls that block do not exist on wasm32, where nothing may block. Each has a twin that ends in `_async`.

mod arena;
mod stopwatch;

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use crate::adapters::{self, is_software};
use crate::cpu::Gradient;
use crate::operation::{Operation, check_stateless};
use crate::{Clip, ClipRecord, Error, cpu};
use arena::{Gpu, Waiting};
use stopwatch::Stopwatch;

/// The device on which host slices are clipped. As text: `auto`, `gpu`, `cpu`, or a part of an adapter's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The best GPU. Without a GPU, or if the gradients exceed its memory, the CPU path. A software adapter is never used.
    #[default]
    Auto,
    /// The best adapter that wgpu finds, even a software adapter.
    Gpu,
    /// The CPU path.
    Cpu,
    /// The best adapter whose name contains this text, in upper or lower case.
    Named(String),
}

impl FromStr for DeviceChoice {
    type Err = std::convert::Infallible;

    fn from_str(choice: &str) -> Result<Self, Self::Err> {
        Ok(match choice.to_lowercase().as_str() {
            "auto" => Self::Auto,
            "gpu" => Self::Gpu,
            "cpu" => Self::Cpu,
            _ => Self::Named(choice.to_owned()),
        })
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
            Self::Named(name) => name,
        })
    }
}

impl DeviceChoice {
    fn admits(&self, info: &wgpu::AdapterInfo) -> bool {
        match self {
            Self::Auto => !is_software(info),
            Self::Gpu => true,
            Self::Cpu => false,
            Self::Named(name) => info.name.to_lowercase().contains(&name.to_lowercase()),
        }
    }

    /// Returns the index of the chosen adapter in `adapters`, which must be in the order of
    /// [`adapters::enumerate`]. `None` is the CPU path.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if the choice requires an adapter and none matches.
    pub fn choose(&self, adapters: &[wgpu::Adapter]) -> Result<Option<usize>, Error> {
        let chosen = adapters.iter().position(|adapter| self.admits(&adapter.get_info()));
        let wanted = match self {
            _ if chosen.is_some() => return Ok(chosen),
            Self::Auto | Self::Cpu => return Ok(None),
            Self::Gpu => "GPU".to_owned(),
            Self::Named(name) => format!("adapter with {name:?} in its name"),
        };
        let names: Vec<_> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
        let found = match &names[..] {
            [] => "wgpu finds no adapter at all".to_owned(),
            names => format!("wgpu finds {}", names.join(", ")),
        };
        Err(Error::NoDevice { wanted, found })
    }
}

/// The device that clipped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SliceDevice {
    /// The CPU path.
    Cpu {
        /// The number of threads that it uses.
        threads: usize,
    },
    /// A wgpu adapter.
    Gpu(Box<wgpu::AdapterInfo>),
}

impl fmt::Display for SliceDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { threads: 1 } => write!(f, "CPU path (1 thread)"),
            Self::Cpu { threads } => write!(f, "CPU path ({threads} threads)"),
            Self::Gpu(info) if is_software(info) => write!(f, "{} ({}, software)", info.name, info.backend),
            Self::Gpu(info) => write!(f, "{} ({})", info.name, info.backend),
        }
    }
}

/// The result of a clip of host slices. `R` is a [`ClipRecord`], or several.
#[derive(Clone, Debug, PartialEq)]
pub struct Clipped<R> {
    /// The record, or the records.
    pub record: R,
    /// The device that clipped.
    pub device: SliceDevice,
    /// The time of each stage. Not on wasm32, which has no clock.
    #[cfg(not(target_arch = "wasm32"))]
    pub timings: Timings,
}

impl<R> Clipped<R> {
    #[cfg_attr(target_arch = "wasm32", expect(unused_variables, reason = "wasm32 has no clock"))]
    fn new(record: R, device: SliceDevice, timings: Timings) -> Self {
        Self {
            record,
            device,
            #[cfg(not(target_arch = "wasm32"))]
            timings,
        }
    }

    fn map<T>(self, record: impl FnOnce(R) -> T) -> Clipped<T> {
        Clipped {
            record: record(self.record),
            device: self.device,
            #[cfg(not(target_arch = "wasm32"))]
            timings: self.timings,
        }
    }
}

/// The wall-clock times of the stages of a clip of host slices. The CPU path has only the stage `clip`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Preparing the plan, and copying the gradients to the device.
    pub upload: Duration,
    /// Measuring and clipping.
    pub clip: Duration,
    /// Copying the changed gradients back.
    pub download: Duration,
}

/// Clips host slices on one device, which it keeps open.
#[derive(Debug)]
pub struct SliceClipper {
    choice: DeviceChoice,
    /// None is the CPU path.
    gpu: Option<Gpu>,
}

impl SliceClipper {
    /// Finds and opens the chosen device.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if the choice requires an adapter and there is none, or it cannot be opened. [`DeviceChoice::Auto`]
    /// and [`DeviceChoice::Cpu`] never fail.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new(choice: &DeviceChoice) -> Result<Self, Error> {
        pollster::block_on(Self::new_async(choice))
    }

    /// `new` for callers that must not block.
    ///
    /// # Errors
    ///
    /// Those of `new`: [`Error::NoDevice`] if the choice requires an adapter and there is none, or it cannot be opened.
    pub async fn new_async(choice: &DeviceChoice) -> Result<Self, Error> {
        let choice = choice.clone();
        if choice == DeviceChoice::Cpu {
            return Ok(Self { choice, gpu: None });
        }
        let adapters = adapters::enumerate_async().await;
        let gpu = match choice.choose(&adapters)? {
            None => None,
            Some(index) => match Gpu::open(&adapters[index]).await {
                Ok(gpu) => Some(gpu),
                Err(error) if choice == DeviceChoice::Auto => {
                    log::warn!("{error}; clipping on the CPU path");
                    None
                }
                Err(error) => return Err(error),
            },
        };
        Ok(Self { choice, gpu })
    }

    /// Returns the device that clips.
    #[must_use]
    pub fn device(&self) -> SliceDevice {
        match &self.gpu {
            Some(gpu) => SliceDevice::Gpu(Box::new(gpu.info().clone())),
            None => SliceDevice::Cpu { threads: cpu::threads() },
        }
    }

    /// Clips f32 gradients so that their joint L2 norm is at most `max_norm`; see [`clip_grad_norm`].
    ///
    /// # Errors
    ///
    /// As for [`SliceClipper::clip_groups`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn clip_grad_norm<G: AsMut<[f32]>>(
        &self,
        gradients: &mut [G],
        max_norm: f32,
    ) -> Result<Clipped<ClipRecord>, Error> {
        let clipped = self.clip(&mut as_gradients(gradients), Clip::by_global_norm(max_norm))?;
        Ok(clipped.map(|records| records[0]))
    }

    /// `clip_grad_norm` without blocking; see [`clip_groups_async`](Self::clip_groups_async).
    ///
    /// # Errors
    ///
    /// As for [`SliceClipper::clip_groups_async`].
    pub async fn clip_grad_norm_async<G: AsMut<[f32]>>(
        &self,
        gradients: &mut [G],
        max_norm: f32,
    ) -> Result<Clipped<ClipRecord>, Error> {
        let clip = Clip::by_global_norm(max_norm);
        let clipped = self.clip_async(&mut as_gradients(gradients), clip).await?;
        Ok(clipped.map(|records| records[0]))
    }

    /// Clamps every element of f32 gradients to `[-clip_value, clip_value]`; see [`clip_grad_value`].
    ///
    /// # Errors
    ///
    /// As for [`SliceClipper::clip_groups`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn clip_grad_value<G: AsMut<[f32]>>(
        &self,
        gradients: &mut [G],
        clip_value: f32,
    ) -> Result<Clipped<()>, Error> {
        let clipped = self.clip(&mut as_gradients(gradients), Clip::by_value(clip_value))?;
        Ok(clipped.map(|_none| ()))
    }

    /// `clip_grad_value` without blocking; see [`clip_groups_async`](Self::clip_groups_async).
    ///
    /// # Errors
    ///
    /// As for [`SliceClipper::clip_groups_async`].
    pub async fn clip_grad_value_async<G: AsMut<[f32]>>(
        &self,
        gradients: &mut [G],
        clip_value: f32,
    ) -> Result<Clipped<()>, Error> {
        let clip = Clip::by_value(clip_value);
        let clipped = self.clip_async(&mut as_gradients(gradients), clip).await?;
        Ok(clipped.map(|_none| ()))
    }

    /// Clips gradients of any type, all of which belong to group 0. Returns the records of [`cpu::clip`].
    ///
    /// # Errors
    ///
    /// As for [`SliceClipper::clip_groups`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn clip(
        &self,
        gradients: &mut [Gradient<'_>],
        clip: Clip,
    ) -> Result<Clipped<Vec<ClipRecord>>, Error> {
        self.clip_groups(gradients, &[clip])
    }

    /// `clip` without blocking; see [`clip_groups_async`](Self::clip_groups_async).
    ///
    /// # Errors
    ///
    /// As for [`SliceClipper::clip_groups_async`].
    pub async fn clip_async(
        &self,
        gradients: &mut [Gradient<'_>],
        clip: Clip,
    ) -> Result<Clipped<Vec<ClipRecord>>, Error> {
        self.clip_groups_async(gradients, &[clip]).await
    }

    /// Clips gradients of any type, each with the clip of its [group](cpu::Gradient::group).
    ///
    /// Returns the records of [`cpu::clip_groups`]: one for each group of a clip by global norm; one for each gradient, or each of
    /// its rows, of a clip of each gradient on its own; none for a clip by value.
    ///
    /// # Errors
    ///
    /// Those of [`cpu::clip_groups`], including [`Error::NeedsPlan`]; [`Error::OutOfMemory`] and [`Error::DeviceLost`] of a GPU;
    /// [`Error::DeviceLimit`] if a gradient that must stay in one buffer exceeds the device's `max_buffer_size`: a gradient with
    /// its own norm, or any gradient for the 0-norm. No slice is changed then, unless the GPU is lost while the clipped gradients
    /// are copied back.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn clip_groups(
        &self,
        gradients: &mut [Gradient<'_>],
        clips: &[Clip],
    ) -> Result<Clipped<Vec<ClipRecord>>, Error> {
        pollster::block_on(self.execute(gradients, without_norm(clips)?, None, Waiting::Blocking))
    }

    /// Clips gradients of any type, each with the clip of its [group](cpu::Gradient::group), for callers that must not block. The
    /// records are those of [`cpu::clip_groups`].
    ///
    /// The future waits for the GPU without blocking. On native targets a thread polls the device while it waits. The CPU path
    /// clips at the first poll. If the future is dropped, some slices may be clipped and others not.
    ///
    /// # Errors
    ///
    /// Those of `clip_groups`: the ones of [`cpu::clip_groups`]; [`Error::OutOfMemory`], [`Error::DeviceLost`] and
    /// [`Error::DeviceLimit`] of a GPU.
    pub async fn clip_groups_async(
        &self,
        gradients: &mut [Gradient<'_>],
        clips: &[Clip],
    ) -> Result<Clipped<Vec<ClipRecord>>, Error> {
        self.execute(gradients, without_norm(clips)?, None, Waiting::Async).await
    }

    /// Clips gradients by `total_norm`, a norm that was measured elsewhere. `clip` must be a [`Clip::by_supplied_norm`], and all
    /// gradients must belong to group 0.
    ///
    /// # Errors
    ///
    /// Those of [`clip_groups`](Self::clip_groups); [`Error::UnexpectedNorm`] for any other clip.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn clip_with_norm(
        &self,
        gradients: &mut [Gradient<'_>],
        clip: Clip,
        total_norm: f32,
    ) -> Result<Clipped<ClipRecord>, Error> {
        let operations = with_norm(clip)?;
        let clipped =
            pollster::block_on(self.execute(gradients, operations, Some(total_norm), Waiting::Blocking))?;
        Ok(clipped.map(|records| records[0]))
    }

    /// `clip_with_norm` without blocking; see [`clip_groups_async`](Self::clip_groups_async).
    ///
    /// # Errors
    ///
    /// Those of [`clip_groups_async`](Self::clip_groups_async); [`Error::UnexpectedNorm`] for any other clip than
    /// [`Clip::by_supplied_norm`].
    pub async fn clip_with_norm_async(
        &self,
        gradients: &mut [Gradient<'_>],
        clip: Clip,
        total_norm: f32,
    ) -> Result<Clipped<ClipRecord>, Error> {
        let clipped = self.execute(gradients, with_norm(clip)?, Some(total_norm), Waiting::Async).await?;
        Ok(clipped.map(|records| records[0]))
    }

    /// Executes checked operations on the GPU or on the CPU path, with a norm if one is supplied.
    async fn execute(
        &self,
        gradients: &mut [Gradient<'_>],
        operations: Vec<Operation>,
        total_norm: Option<f32>,
        waiting: Waiting,
    ) -> Result<Clipped<Vec<ClipRecord>>, Error> {
        if let Some(gpu) = &self.gpu {
            match gpu.clip(gradients, &operations, total_norm, waiting).await {
                Ok((records, timings)) => return Ok(Clipped::new(records, self.device(), timings)),
                Err(error @ (Error::OutOfMemory { .. } | Error::DeviceLimit { .. }))
                    if self.choice == DeviceChoice::Auto =>
                {
                    log::warn!("{error}; clipping on the CPU path");
                }
                Err(error) => return Err(error),
            }
        }
        let mut stopwatch = Stopwatch::start();
        let mut plan = cpu::ClipPlan::of(operations);
        let records = match total_norm {
            Some(total_norm) => plan.clip_with_norm(gradients, total_norm)?,
            None => plan.clip(gradients)?,
        };
        let timings = Timings { clip: stopwatch.lap(), ..Timings::default() };
        Ok(Clipped::new(records, SliceDevice::Cpu { threads: cpu::threads() }, timings))
    }
}

/// Checks clips that measure their norm.
fn without_norm(clips: &[Clip]) -> Result<Vec<Operation>, Error> {
    let operations = check_stateless(clips)?;
    if operations[0].needs_supplied_norm() { Err(Error::NormNotSupplied) } else { Ok(operations) }
}

/// Checks a clip by a supplied norm.
fn with_norm(clip: Clip) -> Result<Vec<Operation>, Error> {
    let operations = check_stateless(&[clip])?;
    if operations[0].needs_supplied_norm() { Ok(operations) } else { Err(Error::UnexpectedNorm) }
}

/// Clips host gradients so that their joint L2 norm is at most `max_norm`, as `torch.nn.utils.clip_grad_norm_`: see
/// [`Clip::by_global_norm`]. The record holds the norm before clipping.
///
/// The gradients are `&mut [Vec<f32>]`, `&mut [&mut [f32]]`, or any other slices. The first call opens the device of
/// [`DeviceChoice::Auto`] and keeps it for later calls. A [`SliceClipper`] takes another choice.
///
/// ```
/// let mut gradients = [vec![3.0, 0.0], vec![4.0]];
/// let clipped = gradclip::slices::clip_grad_norm(&mut gradients, 1.0)?;
/// assert_eq!(clipped.record.total_norm, 5.0);
/// assert!((gradients[0][0] - 0.6).abs() < 1e-6 && (gradients[1][0] - 0.8).abs() < 1e-6);
/// # Ok::<(), gradclip::Error>(())
/// ```
///
/// # Errors
///
/// As for [`SliceClipper::clip_groups`].
#[cfg(not(target_arch = "wasm32"))]
pub fn clip_grad_norm<G: AsMut<[f32]>>(
    gradients: &mut [G],
    max_norm: f32,
) -> Result<Clipped<ClipRecord>, Error> {
    pollster::block_on(default_clipper()).clip_grad_norm(gradients, max_norm)
}

/// `clip_grad_norm` without blocking; see [`SliceClipper::clip_groups_async`].
///
/// # Errors
///
/// As for [`SliceClipper::clip_groups_async`].
pub async fn clip_grad_norm_async<G: AsMut<[f32]>>(
    gradients: &mut [G],
    max_norm: f32,
) -> Result<Clipped<ClipRecord>, Error> {
    default_clipper().await.clip_grad_norm_async(gradients, max_norm).await
}

/// Clamps every element of host gradients to `[-clip_value, clip_value]`, as `torch.nn.utils.clip_grad_value_`: see
/// [`Clip::by_value`]. Gradients and device are as for [`clip_grad_norm`].
///
/// # Errors
///
/// As for [`SliceClipper::clip_groups`].
#[cfg(not(target_arch = "wasm32"))]
pub fn clip_grad_value<G: AsMut<[f32]>>(gradients: &mut [G], clip_value: f32) -> Result<Clipped<()>, Error> {
    pollster::block_on(default_clipper()).clip_grad_value(gradients, clip_value)
}

/// `clip_grad_value` without blocking; see [`SliceClipper::clip_groups_async`].
///
/// # Errors
///
/// As for [`SliceClipper::clip_groups_async`].
pub async fn clip_grad_value_async<G: AsMut<[f32]>>(
    gradients: &mut [G],
    clip_value: f32,
) -> Result<Clipped<()>, Error> {
    default_clipper().await.clip_grad_value_async(gradients, clip_value).await
}

fn as_gradients<G: AsMut<[f32]>>(gradients: &mut [G]) -> Vec<Gradient<'_>> {
    gradients.iter_mut().map(|elements| Gradient::f32(elements.as_mut())).collect()
}

/// Returns the clipper of [`DeviceChoice::Auto`], opened at the first call.
async fn default_clipper() -> &'static SliceClipper {
    static DEFAULT: OnceLock<SliceClipper> = OnceLock::new();
    if let Some(clipper) = DEFAULT.get() {
        return clipper;
    }
    let opened = SliceClipper::new_async(&DeviceChoice::Auto).await;
    // If two calls have opened a device at the same time, the first wins.
    DEFAULT.get_or_init(|| opened.unwrap_or(SliceClipper { choice: DeviceChoice::Cpu, gpu: None }))
}
