//! Host slices in, clipped slices out, in one call: on a GPU if there is a real one, else on the CPU path.

mod arena;

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::clip::{ByNorm, Operation, Scope};
use crate::cpu::Gradient;
use crate::gpu::device::{adapters_async, is_software};
use crate::{Clip, ClipRecord, Error, cpu};
use arena::Gpu;

/// Where host slices are to be clipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best GPU. The CPU path where there is none: a software adapter is not taken. Nor is a GPU that has not
    /// enough memory for the gradients.
    #[default]
    Auto,
    /// The best adapter that wgpu finds, be it a software one.
    Gpu,
    /// The CPU path.
    Cpu,
    /// The best adapter with this in its name, in upper or lower case.
    Named(String),
}

/// `auto`, `gpu`, `cpu`, or a part of an adapter's name.
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

    /// The index of the adapter that this choice takes among them, if they are in the order of
    /// [`adapters`](crate::adapters). None is the CPU path.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if an adapter must be taken and there is none.
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
#[derive(Clone, Debug)]
pub enum SliceDevice {
    /// The CPU path.
    Cpu {
        /// How many threads it uses.
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

/// The outcome of a clip of host slices. `R` is a [`ClipRecord`], or several.
#[derive(Clone, Debug)]
pub struct Clipped<R> {
    /// The record, or the records.
    pub record: R,
    /// The device that clipped.
    pub device: SliceDevice,
    /// How long each stage took.
    pub timings: Timings,
}

/// How long the stages of a clip of host slices took, on the wall clock. The CPU path only has the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Copying the gradients to the device, and planning.
    pub upload: Duration,
    /// Measuring and clipping.
    pub clip: Duration,
    /// Copying the gradients back; nothing where they were not changed.
    pub download: Duration,
}

/// Clips host slices on a device that it keeps open.
#[derive(Debug)]
pub struct SliceClipper {
    choice: DeviceChoice,
    /// None is the CPU path.
    gpu: Option<Gpu>,
}

impl SliceClipper {
    /// Finds and opens the device of this choice.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if it must be an adapter and there is none, or it cannot be opened. [`DeviceChoice::Auto`]
    /// and [`DeviceChoice::Cpu`] never fail.
    pub fn new(choice: &DeviceChoice) -> Result<Self, Error> {
        pollster::block_on(Self::new_async(choice))
    }

    /// [`SliceClipper::new`], where blocking is not possible.
    ///
    /// # Errors
    ///
    /// As for [`SliceClipper::new`].
    pub async fn new_async(choice: &DeviceChoice) -> Result<Self, Error> {
        let choice = choice.clone();
        if choice == DeviceChoice::Cpu {
            return Ok(Self { choice, gpu: None });
        }
        let adapters = adapters_async().await;
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

    /// The device that clips.
    #[must_use]
    pub fn device(&self) -> SliceDevice {
        match &self.gpu {
            Some(gpu) => SliceDevice::Gpu(Box::new(gpu.info().clone())),
            None => SliceDevice::Cpu { threads: cpu::threads() },
        }
    }

    /// Clips gradients as one group, and returns the record of a clip by global norm. A clip by value has no record; call
    /// [`clip_groups`](Self::clip_groups) for the records of a clip of each gradient on its own.
    ///
    /// # Errors
    ///
    /// As for [`SliceClipper::clip_groups`].
    pub fn clip(
        &self,
        gradients: &mut [&mut [f32]],
        clip: Clip,
    ) -> Result<Clipped<Option<ClipRecord>>, Error> {
        let is_global = matches!(clip.checked()?, Operation::Norm(ByNorm { scope: Scope::Global, .. }));
        let mut gradients: Vec<_> = gradients.iter_mut().map(|elements| Gradient::f32(elements)).collect();
        let Clipped { record, device, timings } = self.clip_groups(&mut gradients, &[clip])?;
        let record = record.first().copied().filter(|_| is_global);
        Ok(Clipped { record, device, timings })
    }

    /// Clips gradients of any type, each with the clip of its [group](cpu::Gradient::group).
    ///
    /// The records are those of [`cpu::clip_groups`]: one for each group of a clip by global norm, one for each gradient, or
    /// each of its rows, where each is clipped by itself, none of a clip by value.
    ///
    /// # Errors
    ///
    /// Those of [`cpu::clip_groups`], including [`Error::NeedsPlan`]; [`Error::OutOfMemory`] and [`Error::DeviceLost`] of a GPU;
    /// [`Error::DeviceLimit`] if a gradient that must stay in one buffer exceeds the device's `max_buffer_size`: a gradient with a
    /// norm of its own, or any gradient for the 0-norm. No slice is changed then, unless the GPU is lost while the clipped
    /// gradients are copied back.
    pub fn clip_groups(
        &self,
        gradients: &mut [Gradient<'_>],
        clips: &[Clip],
    ) -> Result<Clipped<Vec<ClipRecord>>, Error> {
        let operation = Clip::all_checked(clips)?[0];
        if let Operation::Norm(ByNorm { scope: Scope::Supplied, .. }) = operation {
            return Err(Error::NormNotSupplied);
        }
        operation.check_without_plan()?;
        self.carry_out(gradients, clips, None)
    }

    /// Clips gradients by `total_norm`, a norm that was measured elsewhere. `clip` must be a [`Clip::by_supplied_norm`], and all
    /// gradients must belong to group 0.
    ///
    /// # Errors
    ///
    /// Those of [`clip_groups`](Self::clip_groups); [`Error::UnexpectedNorm`] for any other clip.
    pub fn clip_with_norm(
        &self,
        gradients: &mut [Gradient<'_>],
        clip: Clip,
        total_norm: f32,
    ) -> Result<Clipped<ClipRecord>, Error> {
        let operation = clip.checked()?;
        let Operation::Norm(ByNorm { scope: Scope::Supplied, .. }) = operation else {
            return Err(Error::UnexpectedNorm);
        };
        operation.check_without_plan()?;
        let Clipped { record, device, timings } = self.carry_out(gradients, &[clip], Some(total_norm))?;
        Ok(Clipped { record: record[0], device, timings })
    }

    /// Clips checked gradients, with a norm if one is supplied.
    fn carry_out(
        &self,
        gradients: &mut [Gradient<'_>],
        clips: &[Clip],
        total_norm: Option<f32>,
    ) -> Result<Clipped<Vec<ClipRecord>>, Error> {
        if let Some(gpu) = &self.gpu {
            match gpu.clip(gradients, clips, total_norm) {
                Ok((record, timings)) => {
                    return Ok(Clipped { record, device: self.device(), timings });
                }
                Err(error @ (Error::OutOfMemory { .. } | Error::DeviceLimit { .. }))
                    if self.choice == DeviceChoice::Auto =>
                {
                    log::warn!("{error}; clipping on the CPU path");
                }
                Err(error) => return Err(error),
            }
        }
        let start = Instant::now();
        let record = match total_norm {
            Some(total_norm) => vec![cpu::clip_with_norm(gradients, clips[0], total_norm)?],
            None => cpu::clip_groups(gradients, clips)?,
        };
        let timings = Timings { clip: start.elapsed(), ..Timings::default() };
        Ok(Clipped { record, device: SliceDevice::Cpu { threads: cpu::threads() }, timings })
    }
}

/// Clips host gradients so that their joint L2 norm is at most `max_norm`, as `torch.nn.utils.clip_grad_norm_`: see
/// [`Clip::by_global_norm`]. The record holds the norm before clipping.
///
/// The first call finds the device, as [`DeviceChoice::Auto`] does, and keeps it for later ones; a [`SliceClipper`]
/// leaves the choice to you.
///
/// ```
/// let (mut w, mut b) = ([3.0, 0.0], [4.0]);
/// let clipped = gradclip::clip_grad_norm(&mut [&mut w, &mut b], 1.0)?;
/// assert_eq!(clipped.record.total_norm, 5.0);
/// assert!((w[0] - 0.6).abs() < 1e-6 && (b[0] - 0.8).abs() < 1e-6);
/// # Ok::<(), gradclip::Error>(())
/// ```
///
/// # Errors
///
/// As for [`SliceClipper::clip`].
pub fn clip_grad_norm(gradients: &mut [&mut [f32]], max_norm: f32) -> Result<Clipped<ClipRecord>, Error> {
    let Clipped { record, device, timings } =
        default_clipper().clip(gradients, Clip::by_global_norm(max_norm))?;
    let record = record.ok_or(Error::NothingMeasured)?;
    Ok(Clipped { record, device, timings })
}

/// Clamps every element of host gradients to `[-clip_value, clip_value]`, as `torch.nn.utils.clip_grad_value_`: see
/// [`Clip::by_value`]. The device is found as by [`clip_grad_norm`].
///
/// # Errors
///
/// As for [`SliceClipper::clip`].
pub fn clip_grad_value(gradients: &mut [&mut [f32]], clip_value: f32) -> Result<Clipped<()>, Error> {
    let Clipped { device, timings, .. } = default_clipper().clip(gradients, Clip::by_value(clip_value))?;
    Ok(Clipped { record: (), device, timings })
}

fn default_clipper() -> &'static SliceClipper {
    static DEFAULT: OnceLock<SliceClipper> = OnceLock::new();
    DEFAULT.get_or_init(|| {
        SliceClipper::new(&DeviceChoice::Auto)
            .unwrap_or(SliceClipper { choice: DeviceChoice::Cpu, gpu: None })
    })
}
