//! What the kernels read besides gradients. It depends on the shapes of a model and on the options only, so it is uploaded
//! once and kept: a step uploads nothing.

use std::sync::{Arc, Mutex, PoisonError};

use burn::cubecl::client::Client;
use burn::cubecl::server::Handle;
use burn_cubecl::CubeDevice;
use bytemuck::{Pod, Zeroable, cast_slice};
use gradclip::DType;
use gradclip::wgsl::Manner;

use super::layout::{Extent, lay_out};
use crate::task::{Method, Task, policy};

/// How many sets of shapes are remembered: some models have parameters that get a gradient in some steps only.
const REMEMBERED: usize = 8;

/// The tables of past clips, shared by the clones of a clipper.
#[derive(Clone, Default)]
pub(crate) struct Cache(Arc<Mutex<Vec<Entry>>>);

struct Entry {
    device: CubeDevice,
    extents: Vec<Extent>,
    task: Task,
    tables: Tables,
}

/// What a clip reads, on the device.
#[derive(Clone)]
pub(super) struct Tables {
    layout: Arc<OnDevice>,
    /// How to measure; `Measure` of `segment.wgsl`.
    pub(super) measure: Handle,
    pub(super) limits: Limits,
}

/// What the gradients of each segment must keep to.
#[derive(Clone)]
pub(super) enum Limits {
    /// Of each segment its partials and its limit; `Segment` of `segment.wgsl`.
    Norm(Handle),
    /// Of each segment its bounds, rounded to each type of elements; `Bounds` of `clamp.wgsl`.
    Value { f32: Handle, f16: Handle, bf16: Handle },
}

impl Limits {
    fn new(client: &Client, layout: &OnDevice, task: &Task) -> Self {
        if let Method::Norm(_) = task.method {
            let segments = layout.segments.iter().zip(&task.segments);
            let segments: Vec<_> = segments.map(|(of, limit)| Segment::of(of, limit[1])).collect();
            return Self::Norm(client.create_from_slice(cast_slice(&segments)));
        }
        let rounded = |dtype: DType| {
            let bounds = task.segments.iter().map(|bounds| bounds.map(|bound| dtype.round(bound)));
            client.create_from_slice(cast_slice(&bounds.collect::<Vec<_>>()))
        };
        Self::Value { f32: rounded(DType::F32), f16: rounded(DType::F16), bf16: rounded(DType::BF16) }
    }

    /// Those of gradients of this type.
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
    /// How many partials there are.
    pub(super) partials: usize,
    /// Of each partial, the gradient that it is of.
    pub(super) owners: Handle,
    /// Of each gradient its partials.
    pub(super) gradients: Handle,
    segments: Vec<std::ops::Range<usize>>,
}

/// A dispatch.
pub(super) struct Batch {
    pub(super) manner: Manner,
    /// The gradient in each slot.
    pub(super) members: Vec<usize>,
    pub(super) tiles: usize,
    pub(super) to_partials: Handle,
    pub(super) of_segments: Handle,
}

/// `Segment` of `segment.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Segment {
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) max_norm: f32,
}

impl Segment {
    fn of(partials: &std::ops::Range<usize>, max_norm: f32) -> Self {
        let narrow = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Self { first: narrow(partials.start), count: narrow(partials.len()), max_norm }
    }
}

/// `Measure` of `segment.wgsl`; what else stands there is for stages that are not used here.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Measure {
    pub(super) epsilon: f32,
    pub(super) policy: u32,
    pub(super) inverse_scale: f32,
    unused: [u32; 4],
}

impl Cache {
    /// The tables of a clip, from the cache if they are there.
    pub(super) fn get(
        &self,
        client: &Client,
        device: &CubeDevice,
        extents: &[Extent],
        task: &Task,
        slots: usize,
    ) -> Tables {
        // A clip that panicked has left whole entries, or none.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.iter().position(|entry| {
            entry.device == *device
                && entry.extents == extents
                && entry.task.segments.len() == task.segments.len()
        });
        let mut entry = if let Some(index) = found {
            entries.remove(index)
        } else {
            let layout = Arc::new(OnDevice::new(client, extents, task.segments.len(), slots));
            let tables = Tables::new(client, layout, task);
            Entry { device: device.clone(), extents: extents.to_vec(), task: task.clone(), tables }
        };
        // A limit that follows a schedule replaces some bytes, not the layout.
        if !entry.task.same_numbers(task) {
            entry.tables = Tables::new(client, entry.tables.layout, task);
            entry.task = task.clone();
        }
        let tables = entry.tables.clone();
        entries.truncate(REMEMBERED - 1);
        entries.insert(0, entry);
        tables
    }
}

impl Tables {
    fn new(client: &Client, layout: Arc<OnDevice>, task: &Task) -> Self {
        let limits = Limits::new(client, &layout, task);
        let measure = match task.method {
            Method::Norm(norm) => Measure {
                epsilon: norm.epsilon,
                policy: policy(&norm),
                inverse_scale: norm.inverse_scale,
                unused: [0; 4],
            },
            Method::Clamp => Measure::zeroed(),
        };
        Self { layout, measure: client.create_from_slice(bytemuck::bytes_of(&measure)), limits }
    }
}

impl OnDevice {
    fn new(client: &Client, extents: &[Extent], segments: usize, slots: usize) -> Self {
        let layout = lay_out(extents, segments, slots);
        let batches = layout
            .batches
            .into_iter()
            .map(|batch| Batch {
                manner: batch.manner,
                members: batch.members,
                tiles: batch.to_partials.len(),
                to_partials: client.create_from_slice(cast_slice(&batch.to_partials)),
                of_segments: client.create_from_slice(cast_slice(&batch.of_segments)),
            })
            .collect();
        let gradients: Vec<_> =
            layout.gradients.iter().map(|partials| Segment::of(partials, f32::INFINITY)).collect();
        // Nothing is not bound: where there are no partials at all, nobody reads this.
        let owners = if layout.owners.is_empty() { &[0][..] } else { &layout.owners };
        Self {
            batches,
            partials: layout.owners.len(),
            owners: client.create_from_slice(cast_slice(owners)),
            gradients: client.create_from_slice(cast_slice(&gradients)),
            segments: layout.segments,
        }
    }
}
