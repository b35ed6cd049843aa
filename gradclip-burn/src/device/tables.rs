//! The tables that the kernels read. They depend only on the shapes of a model and on the options, so they are uploaded once and
//! kept: a step uploads nothing.

use std::sync::{Arc, Mutex, PoisonError};

use burn::cubecl::client::Client;
use burn::cubecl::server::Handle;
use burn_cubecl::CubeDevice;
use bytemuck::cast_slice;
use gradclip::DType;
use gradclip::kernels::TileFormat;
use gradclip::kernels::tables::{Bounds, NormParams, Segment};

use super::layout::{GradientShape, lay_out};
use crate::task::{Method, Task};

/// The number of sets of shapes in the cache. Some models have parameters that have a gradient only in some steps.
const CACHED: usize = 8;

/// The tables of past clips, shared by the clones of a clipper.
#[derive(Clone, Default)]
pub(crate) struct Cache(Arc<Mutex<Vec<Entry>>>);

struct Entry {
    device: CubeDevice,
    shapes: Vec<GradientShape>,
    task: Task,
    tables: Tables,
}

/// The tables of a clip, on the device.
#[derive(Clone)]
pub(super) struct Tables {
    layout: Arc<OnDevice>,
    /// [`NormParams`]; None for a clip by value.
    pub(super) norm_params: Option<Handle>,
    pub(super) limits: Limits,
}

/// The limits of the segments.
#[derive(Clone)]
pub(super) enum Limits {
    /// The [`Segment`]s of a clip by norm.
    Norm(Handle),
    /// The [`Bounds`] of a clip by value, rounded to each type of elements.
    Value { f32: Handle, f16: Handle, bf16: Handle },
}

impl Limits {
    fn new(client: &Client, layout: &OnDevice, task: &Task) -> Self {
        if let Method::Norm(_) = task.method {
            let segments = layout.segments.iter().zip(&task.segments);
            let segments: Vec<_> = segments.map(|(partials, limit)| Segment::new(partials, limit[1])).collect();
            return Self::Norm(client.create_from_slice(cast_slice(&segments)));
        }
        let rounded = |dtype: DType| {
            let bounds = task.segments.iter().map(|&bounds| Bounds::new(bounds, dtype));
            client.create_from_slice(cast_slice(&bounds.collect::<Vec<_>>()))
        };
        Self::Value { f32: rounded(DType::F32), f16: rounded(DType::F16), bf16: rounded(DType::BF16) }
    }

    /// The limits for gradients of this type.
    pub(super) fn of(&self, dtype: DType) -> &Handle {
        match self {
            Self::Norm(segments) => segments,
            Self::Value { f16, .. } if dtype == DType::F16 => f16,
            Self::Value { bf16, .. } if dtype == DType::BF16 => bf16,
            Self::Value { f32, .. } => f32,
        }
    }
}

impl std::ops::Deref for Tables {
    type Target = OnDevice;

    fn deref(&self) -> &OnDevice {
        &self.layout
    }
}

/// A layout, on the device.
pub(super) struct OnDevice {
    pub(super) batches: Vec<Batch>,
    /// The number of partials.
    pub(super) partials: usize,
    /// The gradient of each partial.
    pub(super) gradient_of_partial: Handle,
    /// A [`Segment`] for each gradient.
    pub(super) gradients: Handle,
    segments: Vec<std::ops::Range<usize>>,
}

/// A dispatch.
pub(super) struct Batch {
    pub(super) format: TileFormat,
    /// The gradient in each slot.
    pub(super) members: Vec<usize>,
    /// The number of tiles of either pass.
    pub(super) tiles: usize,
    pub(super) norm_tiles: Handle,
    pub(super) map_tiles: Handle,
}

impl Cache {
    /// Returns the tables of a clip, from the cache if possible.
    pub(super) fn get(
        &self,
        client: &Client,
        device: &CubeDevice,
        shapes: &[GradientShape],
        task: &Task,
        slots: usize,
    ) -> Tables {
        // The list only has complete entries, even if a clip panicked.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.iter().position(|entry| {
            entry.device == *device
                && entry.shapes == shapes
                && entry.task.segments.len() == task.segments.len()
        });
        let mut entry = if let Some(index) = found {
            entries.remove(index)
        } else {
            let layout = Arc::new(OnDevice::new(client, shapes, task.segments.len(), slots));
            let tables = Tables::new(client, layout, task);
            Entry { device: device.clone(), shapes: shapes.to_vec(), task: task.clone(), tables }
        };
        // A new limit replaces some bytes, not the layout.
        if !entry.task.same_numbers(task) {
            entry.tables = Tables::new(client, entry.tables.layout, task);
            entry.task = task.clone();
        }
        let tables = entry.tables.clone();
        entries.truncate(CACHED - 1);
        entries.insert(0, entry);
        tables
    }
}

impl Tables {
    fn new(client: &Client, layout: Arc<OnDevice>, task: &Task) -> Self {
        let limits = Limits::new(client, &layout, task);
        let norm_params = match task.method {
            Method::Norm(norm) => {
                Some(client.create_from_slice(bytemuck::bytes_of(&NormParams::new(&norm))))
            }
            Method::Clamp => None,
        };
        Self { layout, norm_params, limits }
    }
}

impl OnDevice {
    fn new(client: &Client, shapes: &[GradientShape], segments: usize, slots: usize) -> Self {
        let layout = lay_out(shapes, segments, slots);
        let batches = layout
            .batches
            .into_iter()
            .map(|batch| Batch {
                format: batch.format,
                members: batch.members,
                tiles: batch.norm_tiles.len(),
                norm_tiles: client.create_from_slice(cast_slice(&batch.norm_tiles)),
                map_tiles: client.create_from_slice(cast_slice(&batch.map_tiles)),
            })
            .collect();
        let gradients: Vec<_> =
            layout.gradients.iter().map(|partials| Segment::new(partials, f32::INFINITY)).collect();
        // An empty buffer cannot be bound. Without partials, no kernel reads this one.
        let gradient_of_partial =
            if layout.gradient_of_partial.is_empty() { &[0][..] } else { &layout.gradient_of_partial };
        Self {
            batches,
            partials: layout.gradient_of_partial.len(),
            gradient_of_partial: client.create_from_slice(cast_slice(gradient_of_partial)),
            gradients: client.create_from_slice(cast_slice(&gradients)),
            segments: layout.segments,
        }
    }
}
