//! The tables that the kernels read. They depend only on the shapes of the gradients and on the options of the clip, so
//! they are uploaded once and cached. A step with the same shapes and options uploads nothing.

use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, PoisonError};

use burn::cubecl::client::Client;
use burn::cubecl::server::Handle;
use burn_cubecl::CubeDevice;
use bytemuck::{bytes_of, cast_slice};
use gradclip::DType;
use gradclip::kernels::TileFormat;
use gradclip::kernels::tables::{Bounds, NormParams, Segment, UnscaledBounds};

use super::layout::{GradientShape, Tiles, lay_out};
use crate::resolved_clip::{ClipKind, ResolvedClip};

/// The maximum number of entries in the cache. In some models, some parameters have a gradient only in some steps, so
/// the shapes vary.
const CAPACITY: usize = 8;

/// The tables of past clips, most recent first, shared by the clones of a clipper.
#[derive(Clone, Default)]
pub(crate) struct TableCache(Arc<Mutex<Vec<Entry>>>);

struct Entry {
    device: CubeDevice,
    shapes: Vec<GradientShape>,
    segments: usize,
    options: OptionBits,
    tables: Tables,
}

/// The options of a clip as bits, to find out whether its tables are up to date. Bits distinguish a bound of 0.0 from
/// -0.0.
#[derive(PartialEq)]
struct OptionBits {
    /// The bytes of [`NormParams`]; for a clip by value, those of the inverse of its loss scale, if it has one.
    params: Vec<u8>,
    bounds: Vec<[u32; 2]>,
}

impl OptionBits {
    fn new(clip: &ResolvedClip) -> Self {
        let params = match clip.kind {
            ClipKind::Norm(norm) => bytes_of(&NormParams::new(&norm)).to_vec(),
            ClipKind::Clamp { inverse_scale } => inverse_scale.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        Self { params, bounds: clip.bounds.iter().map(|bounds| bounds.map(f32::to_bits)).collect() }
    }
}

/// The tables of a clip, on the device.
#[derive(Clone)]
pub(super) struct Tables {
    layout: Arc<DeviceLayout>,
    /// [`NormParams`]; `None` for a clip by value.
    pub(super) norm_params: Option<Handle>,
    pub(super) limits: Limits,
    /// The tables of the parameters, for adaptive gradient clipping.
    pub(super) parameters: Option<ParameterTables>,
}

/// The tables of the parameters.
#[derive(Clone)]
pub(super) struct ParameterTables {
    /// A [`Segment`] without limit for the parameter of each segment.
    pub(super) segments: Handle,
    /// The [`NormParams`] of their norms: parameters have no loss scale.
    pub(super) norm_params: Handle,
}

/// The limits of the segments.
#[derive(Clone)]
pub(super) enum Limits {
    /// The [`Segment`]s of a clip by norm.
    Norm(Handle),
    /// The [`Bounds`] of a clip by value, rounded to each element type; [`UnscaledBounds`] if it has a loss scale.
    Value { f32: Handle, f16: Handle, bf16: Handle },
}

impl Limits {
    fn new(client: &Client, layout: &DeviceLayout, clip: &ResolvedClip) -> Self {
        let inverse_scale = match clip.kind {
            ClipKind::Norm(_) => {
                let segments = layout.segments.iter().zip(&clip.bounds);
                let segments: Vec<_> =
                    segments.map(|(partials, &[_, max_norm])| Segment::new(partials, max_norm)).collect();
                return Self::Norm(client.create_from_slice(cast_slice(&segments)));
            }
            ClipKind::Clamp { inverse_scale } => inverse_scale,
        };
        let rounded = |dtype: DType| match inverse_scale {
            None => {
                let bounds = clip.bounds.iter().map(|&bounds| Bounds::new(bounds, dtype));
                client.create_from_slice(cast_slice(&bounds.collect::<Vec<_>>()))
            }
            Some(inverse_scale) => {
                let table = UnscaledBounds::new(inverse_scale, &clip.bounds, dtype);
                client.create_from_slice(cast_slice(table.numbers()))
            }
        };
        Self::Value { f32: rounded(DType::F32), f16: rounded(DType::F16), bf16: rounded(DType::BF16) }
    }

    /// Returns the limits for gradients of an element type.
    pub(super) fn of(&self, dtype: DType) -> &Handle {
        match self {
            Self::Norm(segments) => segments,
            Self::Value { f16, .. } if dtype == DType::F16 => f16,
            Self::Value { bf16, .. } if dtype == DType::BF16 => bf16,
            Self::Value { f32, .. } => f32,
        }
    }
}

impl Deref for Tables {
    type Target = DeviceLayout;

    fn deref(&self) -> &DeviceLayout {
        &self.layout
    }
}

/// A [`Layout`](super::layout::Layout), on the device.
pub(super) struct DeviceLayout {
    pub(super) batches: Vec<DeviceBatch>,
    /// The number of partials.
    pub(super) partials: usize,
    /// The gradient of each partial.
    pub(super) gradient_of_partial: Handle,
    /// A [`Segment`] for each gradient, for its statistics.
    pub(super) gradients: Handle,
    /// The partials of each segment.
    segments: Vec<Range<usize>>,
    /// A [`Segment`] for the parameter of each segment, if the clip reads the parameters.
    parameters: Option<Handle>,
}

/// A [`Batch`](super::layout::Batch), on the device.
pub(super) struct DeviceBatch {
    pub(super) format: TileFormat,
    /// Whether it holds parameters, which have no elementwise pass.
    pub(super) is_parameters: bool,
    /// Whether it holds gradients or parameters that are split into columns.
    pub(super) has_columns: bool,
    /// The index of the gradient in each slot.
    pub(super) slots: Vec<usize>,
    pub(super) norm_tiles: DeviceTiles,
    pub(super) elementwise_tiles: DeviceTiles,
}

/// [`Tiles`], on the device.
pub(super) struct DeviceTiles {
    pub(super) count: usize,
    pub(super) table: Handle,
}

impl DeviceTiles {
    fn new(client: &Client, tiles: &Tiles) -> Self {
        Self { count: tiles.count(), table: client.create_from_slice(tiles.bytes()) }
    }
}

impl TableCache {
    /// Returns the tables of a clip, from the cache if possible.
    pub(super) fn get(
        &self,
        client: &Client,
        device: &CubeDevice,
        shapes: &[GradientShape],
        clip: &ResolvedClip,
        max_slots: usize,
    ) -> Tables {
        // A panic cannot leave an incomplete entry in the list.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.iter().position(|entry| {
            entry.device == *device && entry.shapes == shapes && entry.segments == clip.segments()
        });
        let options = OptionBits::new(clip);
        let entry = match found.map(|index| entries.remove(index)) {
            Some(entry) if entry.options == options => entry,
            // The options differ: the limits are new, but the layout is the same.
            Some(entry) => Entry { options, tables: Tables::new(client, entry.tables.layout, clip), ..entry },
            None => {
                let layout = Arc::new(DeviceLayout::new(client, shapes, clip.segments(), max_slots));
                Entry {
                    device: device.clone(),
                    shapes: shapes.to_vec(),
                    segments: clip.segments(),
                    options,
                    tables: Tables::new(client, layout, clip),
                }
            }
        };
        let tables = entry.tables.clone();
        entries.truncate(CAPACITY - 1);
        entries.insert(0, entry);
        tables
    }
}

impl Tables {
    fn new(client: &Client, layout: Arc<DeviceLayout>, clip: &ResolvedClip) -> Self {
        let limits = Limits::new(client, &layout, clip);
        let norm_params = match clip.kind {
            ClipKind::Norm(norm) => Some(client.create_from_slice(bytes_of(&NormParams::new(&norm)))),
            ClipKind::Clamp { .. } => None,
        };
        let parameters = match (clip.kind, &layout.parameters) {
            (ClipKind::Norm(norm), Some(segments)) => {
                let norm_params = NormParams { inverse_scale: 1.0, ..NormParams::new(&norm) };
                let norm_params = client.create_from_slice(bytes_of(&norm_params));
                Some(ParameterTables { segments: segments.clone(), norm_params })
            }
            _ => None,
        };
        Self { layout, norm_params, limits, parameters }
    }
}

impl DeviceLayout {
    fn new(client: &Client, shapes: &[GradientShape], segments: usize, max_slots: usize) -> Self {
        let has_parameters = shapes.iter().any(|shape| shape.is_parameter);
        // The segments of the parameters follow those of the gradients.
        let layout = lay_out(shapes, if has_parameters { 2 * segments } else { segments }, max_slots);
        let unlimited = |partials: &[Range<usize>]| {
            let table: Vec<_> =
                partials.iter().map(|partials| Segment::new(partials, f32::INFINITY)).collect();
            client.create_from_slice(cast_slice(&table))
        };
        let gradients = shapes.iter().filter(|shape| !shape.is_parameter).count();
        let gradients = unlimited(&layout.gradients[..gradients]);
        let parameters = has_parameters.then(|| unlimited(&layout.segments[segments..]));
        let batches = layout
            .batches
            .into_iter()
            .map(|batch| DeviceBatch {
                format: batch.format,
                is_parameters: batch.is_parameters,
                has_columns: matches!(batch.norm_tiles, Tiles::Columns(_)),
                slots: batch.slots,
                norm_tiles: DeviceTiles::new(client, &batch.norm_tiles),
                elementwise_tiles: DeviceTiles::new(client, &batch.elementwise_tiles),
            })
            .collect();
        // An empty buffer cannot be bound. Without partials, no kernel reads this buffer.
        let gradient_of_partial =
            if layout.gradient_of_partial.is_empty() { &[0][..] } else { &layout.gradient_of_partial };
        Self {
            batches,
            partials: layout.gradient_of_partial.len(),
            gradient_of_partial: client.create_from_slice(cast_slice(gradient_of_partial)),
            gradients,
            segments: layout.segments,
            parameters,
        }
    }
}
