//! `Error` and `GradientId`. Every message says what was given and what is allowed.

use std::fmt;

use crate::shown::{Quoted, Shown as _};

/// Identifies a gradient in an error: its index in the list that the call was given and, if it has one, its label
/// ([`Gradient::label`](crate::Gradient::label), [`cpu::Gradient::label`](crate::cpu::Gradient::label)).
///
/// It is shown as `3` or as `3 ("encoder.weight")`.
///
/// ```
/// use gradclip::{Clip, Error, GradientId, cpu::{self, Gradient}};
///
/// let mut weight = [1.0; 4];
/// let mut gradients = [Gradient::f32(&mut weight).label("encoder.weight").rows(3)];
/// let error = cpu::clip(&mut gradients, Clip::by_norm(1.0)).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "gradient 0 (\"encoder.weight\") has 4 elements, which cannot be split into 3 rows of equal length"
/// );
/// let Error::Rows { gradient, .. } = error else { unreachable!() };
/// assert_eq!(gradient, GradientId { index: 0, label: Some("encoder.weight".into()) });
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GradientId {
    /// The index in the list of gradients.
    pub index: usize,
    /// The label, if the gradient has one.
    pub label: Option<Box<str>>,
}

impl GradientId {
    pub(crate) fn new(index: usize, label: Option<&str>) -> Self {
        Self { index, label: label.map(Box::from) }
    }
}

/// A gradient without a label.
impl From<usize> for GradientId {
    fn from(index: usize) -> Self {
        Self { index, label: None }
    }
}

impl fmt::Display for GradientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.label {
            Some(label) => write!(f, "{} ({})", self.index, Quoted(label)),
            None => write!(f, "{}", self.index),
        }
    }
}

/// The reason why a clip could not be prepared or executed, or why its results could not be read.
///
/// Input is checked before anything is written: a call that returns an error about its input has changed no gradient.
///
/// | phase | errors |
/// |---|---|
/// | options of a clip, of a loss scale, and saved state | [`Parse`](Self::Parse), [`MaxNorm`](Self::MaxNorm), [`ClipValue`](Self::ClipValue), [`ClipRange`](Self::ClipRange), [`Epsilon`](Self::Epsilon), [`LossScale`](Self::LossScale), [`NormType`](Self::NormType), [`ParameterFloor`](Self::ParameterFloor), [`ZClip`](Self::ZClip), [`AutoClip`](Self::AutoClip), [`SkipAbove`](Self::SkipAbove), [`MaxConsecutiveSkips`](Self::MaxConsecutiveSkips), [`ConflictingLimits`](Self::ConflictingLimits), [`NeedsNorm`](Self::NeedsNorm), [`NeedsPlan`](Self::NeedsPlan), [`NoClip`](Self::NoClip), [`InGroup`](Self::InGroup), [`GroupsDiffer`](Self::GroupsDiffer), [`LossScaleOption`](Self::LossScaleOption), [`NormHistory`](Self::NormHistory), [`NormWindow`](Self::NormWindow), [`StepCounts`](Self::StepCounts) |
/// | gradients and parameters | [`GroupWithoutClip`](Self::GroupWithoutClip), [`Rows`](Self::Rows), [`Columns`](Self::Columns), [`RowsAndColumns`](Self::RowsAndColumns), [`TooManyEmptyRows`](Self::TooManyEmptyRows), [`MissingParameter`](Self::MissingParameter), [`ParameterLength`](Self::ParameterLength), [`InParameter`](Self::InParameter), [`BufferUsage`](Self::BufferUsage), [`Misaligned`](Self::Misaligned), [`OutOfBounds`](Self::OutOfBounds), [`Overlap`](Self::Overlap), [`Part`](Self::Part), [`PartialsNorm`](Self::PartialsNorm), [`PartialsAndColumns`](Self::PartialsAndColumns), [`EmptyPartials`](Self::EmptyPartials), [`Producer`](Self::Producer), [`PartialsOverlap`](Self::PartialsOverlap), [`InPartials`](Self::InPartials), [`BufferMapped`](Self::BufferMapped), [`BufferRejected`](Self::BufferRejected) |
/// | the device | [`NoDevice`](Self::NoDevice), [`DeviceLimit`](Self::DeviceLimit), [`OutOfMemory`](Self::OutOfMemory), [`DeviceLost`](Self::DeviceLost) |
/// | updates of a plan | [`LimitCount`](Self::LimitCount), [`StateCount`](Self::StateCount), [`NoSuchGroup`](Self::NoSuchGroup), [`NoGroupLimit`](Self::NoGroupLimit), [`NoSuchPart`](Self::NoSuchPart), [`RebindCount`](Self::RebindCount), [`RebindMismatch`](Self::RebindMismatch), [`NotEnabled`](Self::NotEnabled), [`DynamicLossScale`](Self::DynamicLossScale), [`UnexpectedNorm`](Self::UnexpectedNorm), [`CopySource`](Self::CopySource), [`ForeignQueue`](Self::ForeignQueue), [`MisalignedChunk`](Self::MisalignedChunk), [`MeasurementMismatch`](Self::MeasurementMismatch) |
/// | sharded clips | [`NotSharded`](Self::NotSharded), [`ShardedUnits`](Self::ShardedUnits), [`ShardCount`](Self::ShardCount), [`ForeignShare`](Self::ForeignShare), [`Shard`](Self::Shard), [`TileCount`](Self::TileCount), [`RanksDiffer`](Self::RanksDiffer), [`RankFailed`](Self::RankFailed), [`OnRank`](Self::OnRank) |
/// | results | [`NonFinite`](Self::NonFinite), [`NothingMeasured`](Self::NothingMeasured), [`NormNotSupplied`](Self::NormNotSupplied), [`PartMissing`](Self::PartMissing), [`NotSubmitted`](Self::NotSubmitted), [`SubmissionRejected`](Self::SubmissionRejected), [`InStep`](Self::InStep) |
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Options of a clip, of a loss scale, and saved state.
    /// Text that names no value of an option.
    #[error("{} is no {what}; allowed: {allowed}", Quoted(given))]
    Parse {
        /// The option.
        what: &'static str,
        /// The text.
        given: String,
        /// The texts that are allowed.
        allowed: &'static str,
    },

    /// A limit that is negative or NaN: a `max_norm`, a `threshold` or a `clipping`.
    #[error("the limit is {}, but it must be 0 or greater", given.shown())]
    MaxNorm {
        /// The limit of the clip.
        given: f32,
    },

    /// A `clip_value` that is negative or NaN.
    #[error("clip_value is {}, but it must be 0 or greater", given.shown())]
    ClipValue {
        /// The `clip_value` of the clip.
        given: f32,
    },

    /// A range of a clip by value that is empty or has a NaN bound.
    #[error(
        "low is {} and high is {}, but neither may be NaN, and low must not exceed high",
        low.shown(),
        high.shown()
    )]
    ClipRange {
        /// The lower bound of the clip.
        low: f32,
        /// The upper bound of the clip.
        high: f32,
    },

    /// An epsilon that is negative, infinite or NaN.
    #[error("epsilon is {}, but it must be finite and not negative", given.shown())]
    Epsilon {
        /// The epsilon of the clip.
        given: f32,
    },

    /// A loss scale that is not positive, or so small or large that it or its inverse is not finite.
    #[error("the loss scale is {}, but both it and its inverse must be positive and finite", given.shown())]
    LossScale {
        /// The loss scale of the clip.
        given: f32,
    },

    /// A norm type that does not exist, or that this kind of clip does not have.
    #[error("the norm type is {}, but p must not be NaN, and Clip::by_rms takes only the L2 norm", given.shown())]
    NormType {
        /// The norm type of the clip.
        given: crate::NormType,
    },

    /// A floor for parameter norms that is negative, infinite or NaN.
    #[error("the floor for parameter norms is {}, but it must be finite and not negative", given.shown())]
    ParameterFloor {
        /// The floor of the clip.
        given: f32,
    },

    /// A [`ZClip`](crate::ZClip) with a value out of range.
    #[error(
        "z_clip has {}, but alpha must be in [0, 1), z_threshold positive and finite, and warm_up at least 1",
        given.shown()
    )]
    ZClip {
        /// The value that was given.
        given: crate::ZClip,
    },

    /// A [`skip_above`](crate::Clip::skip_above) that is negative or NaN.
    #[error("skip_above is {}, but it must be 0 or greater", given.shown())]
    SkipAbove {
        /// The norm that was given.
        given: f32,
    },

    /// A [`max_consecutive_skips`](crate::Clip::max_consecutive_skips) of 0, or without
    /// [`skip_above`](crate::Clip::skip_above).
    #[error("max_consecutive_skips is {given}, but {}", if *skips { "it must be at least 1" } else { "Clip::skip_above is not set" })]
    MaxConsecutiveSkips {
        /// The number that was given.
        given: u32,
        /// Whether the clip has [`skip_above`](crate::Clip::skip_above).
        skips: bool,
    },

    /// An [`AutoClip`](crate::AutoClip) with a value out of range.
    #[error(
        "auto_clip has {}, but percentile must be in [0, 100], and window from 1 to {}",
        given.shown(),
        crate::AutoClip::MAX_WINDOW
    )]
    AutoClip {
        /// The value that was given.
        given: crate::AutoClip,
    },

    /// More than one of [`Clip::by_parameter_norm`](crate::Clip::by_parameter_norm), [`z_clip`](crate::Clip::z_clip) and
    /// [`auto_clip`](crate::Clip::auto_clip).
    #[error(
        "only one of Clip::by_parameter_norm, Clip::z_clip and Clip::auto_clip may set the limits of a clip"
    )]
    ConflictingLimits,

    /// An option or a call that needs a norm, with a clip that measures none; or [`skip_above`](crate::Clip::skip_above), with a
    /// clip that does not limit a norm.
    #[error("{what} needs a norm, but {clip} has none")]
    NeedsNorm {
        /// The option or method.
        what: &'static str,
        /// The constructor of the clip.
        clip: &'static str,
    },

    /// An option whose state or results a plan keeps, in a call that makes no plan.
    #[error("Clip::{option} needs a plan to keep its results: cpu::ClipPlan, or Clipper::prepare on a GPU")]
    NeedsPlan {
        /// The option, such as `z_clip` or `count_steps`.
        option: &'static str,
    },

    /// An empty list of clips.
    #[error("no clip was given, but each group of gradients needs one")]
    NoClip,

    /// An invalid option of one of several groups.
    #[error("group {group}: {error}")]
    InGroup {
        /// The index of the group.
        group: usize,
        /// The error of its clip.
        error: Box<Self>,
    },

    /// Two groups whose clips differ in more than their limits.
    #[error(
        "the clips of groups {first} and {second} differ in {option} ({} and {}), but only their limits may differ",
        given[0],
        given[1]
    )]
    GroupsDiffer {
        /// A group.
        first: usize,
        /// The first group whose clip differs from that.
        second: usize,
        /// The first option in which they differ.
        option: &'static str,
        /// The option's value in the first group, and in the second.
        given: [String; 2],
    },

    /// An option of a [`LossScale`](crate::loss_scale::LossScale) that is out of range.
    #[error("the {option} of the loss scale is {}, but it must be {allowed}", given.shown())]
    LossScaleOption {
        /// The option.
        option: &'static str,
        /// Its value.
        given: f32,
        /// The values that are allowed.
        allowed: &'static str,
    },

    /// A saved history of norms with a value out of range.
    #[error(
        "history {record} has mean {} and deviation {}, but both must be finite and not negative",
        given.mean.shown(),
        given.deviation.shown()
    )]
    NormHistory {
        /// The index of the record.
        record: usize,
        /// The history that was given.
        given: crate::stats::NormHistory,
    },

    /// A saved window of norms that is too long, or has a norm out of range.
    #[error(
        "the window of record {record} has {len} norms{}, but it may have at most {window}, each positive and finite",
        among_them(*invalid)
    )]
    NormWindow {
        /// The index of the record.
        record: usize,
        /// The number of norms that were given.
        len: usize,
        /// The first norm that is not positive and finite.
        invalid: Option<f32>,
        /// The largest number of norms that the clip keeps.
        window: u32,
    },

    /// Saved step counts with a value out of range.
    #[error(
        "the counts of record {record} have largest_norm {}, but it must be finite and not negative",
        given.largest_norm.shown()
    )]
    StepCounts {
        /// The index of the record.
        record: usize,
        /// The counts that were given.
        given: crate::stats::StepCounts,
    },

    // Gradients and parameters.
    /// A gradient of a group that has no clip.
    #[error("gradient {gradient} belongs to group {given}, but {}", group_count(*groups))]
    GroupWithoutClip {
        /// The gradient.
        gradient: GradientId,
        /// Its group.
        given: usize,
        /// The number of groups that have a clip.
        groups: usize,
    },

    /// A gradient that cannot be split into this number of rows.
    #[error(
        "gradient {gradient} has {elements} elements, which cannot be split into {rows} rows of equal length"
    )]
    Rows {
        /// The gradient.
        gradient: GradientId,
        /// The number of rows.
        rows: u64,
        /// The number of elements.
        elements: u64,
    },

    /// A gradient that cannot be split into this number of columns.
    #[error(
        "gradient {gradient} has {elements} elements, which cannot be split into {columns} columns of equal length"
    )]
    Columns {
        /// The gradient.
        gradient: GradientId,
        /// The number of columns.
        columns: u64,
        /// The number of elements.
        elements: u64,
    },

    /// A gradient that is split into rows and into columns.
    #[error(
        "gradient {gradient} has {rows} rows and {columns} columns, but it can be split into only one of the two"
    )]
    RowsAndColumns {
        /// The gradient.
        gradient: GradientId,
        /// The number of rows.
        rows: u64,
        /// The number of columns.
        columns: u64,
    },

    /// Too many rows or columns without elements.
    #[error(
        "gradient {gradient} has {rows} rows or columns and no elements, but all gradients without elements may have \
         at most {most} together"
    )]
    TooManyEmptyRows {
        /// The gradient that exceeds the limit.
        gradient: GradientId,
        /// The number of its rows or columns.
        rows: u64,
        /// The limit for all gradients without elements together.
        most: u64,
    },

    /// A gradient without a parameter, in a clip by parameter norm.
    #[error(
        "gradient {gradient} has no parameter, but Clip::by_parameter_norm needs one for each measured gradient"
    )]
    MissingParameter {
        /// The gradient.
        gradient: GradientId,
    },

    /// A parameter whose number of elements differs from that of its gradient.
    #[error("the parameter of gradient {gradient} has {given} elements, but the gradient has {needed}")]
    ParameterLength {
        /// The gradient.
        gradient: GradientId,
        /// The number of elements of the parameter.
        given: u64,
        /// The number of elements of the gradient.
        needed: u64,
    },

    /// An invalid buffer or range of a parameter.
    #[error("the parameter of {error}")]
    InParameter {
        /// The error, worded as for the gradient itself.
        error: Box<Self>,
    },

    /// A buffer that cannot be bound as storage.
    #[error("gradient {gradient}: its buffer was created with the usages {given}, but it needs {needed}")]
    BufferUsage {
        /// The gradient.
        gradient: GradientId,
        /// The usages of its buffer.
        given: String,
        /// The missing usage.
        needed: &'static str,
    },

    /// A range that does not begin and end at multiples of the element size.
    #[error("gradient {gradient}: its {what} is {given} bytes, but it must be a multiple of {multiple}")]
    Misaligned {
        /// The gradient.
        gradient: GradientId,
        /// The misaligned quantity: the offset, the length or the buffer.
        what: &'static str,
        /// Its value, in bytes.
        given: u64,
        /// The required divisor, in bytes.
        multiple: u64,
    },

    /// A range that exceeds its buffer, or ends before it begins.
    #[error(
        "gradient {gradient}: its range is bytes {start}..{end}, but it must not end before it begins, nor past the \
         {len} bytes of its buffer"
    )]
    OutOfBounds {
        /// The gradient.
        gradient: GradientId,
        /// The start of the range, in bytes.
        start: u64,
        /// The end of the range, in bytes.
        end: u64,
        /// The size of the buffer, in bytes.
        len: u64,
    },

    /// Two gradients that share bytes, which would be counted and scaled twice.
    #[error(
        "gradients {first} and {second} overlap in bytes {start}..{end} of one buffer, which would be scaled twice"
    )]
    Overlap {
        /// The gradient that begins first in the buffer.
        first: GradientId,
        /// The other gradient.
        second: GradientId,
        /// The start of the shared bytes.
        start: u64,
        /// The end of the shared bytes.
        end: u64,
    },

    /// A part beyond the number of gradients.
    #[error(
        "gradient {gradient} is in part {given}, but parts are counted from 0, and there are {gradients} gradients"
    )]
    Part {
        /// The gradient.
        gradient: GradientId,
        /// Its part.
        given: usize,
        /// The number of gradients.
        gradients: usize,
    },

    /// [`Partials`](crate::Partials) with a norm type other than L1, L2 and infinity.
    #[error(
        "gradient {gradient} has partials, but only the L1, the L2 and the infinity norm can be computed from them"
    )]
    PartialsNorm {
        /// The gradient.
        gradient: GradientId,
    },

    /// [`Partials`](crate::Partials) of a gradient whose columns have their own norms.
    #[error("gradient {gradient} has partials and columns, but partials cover runs of a row, not columns")]
    PartialsAndColumns {
        /// The gradient.
        gradient: GradientId,
    },

    /// [`Partials`](crate::Partials) with runs of 0 elements.
    #[error("the partials of gradient {gradient} have 0 elements each, but they need at least 1")]
    EmptyPartials {
        /// The gradient.
        gradient: GradientId,
    },

    /// A [`Producer`](crate::kernels::Producer) with an invalid workgroup size or number of vectors.
    #[error(
        "a producer has workgroups of {workgroup_size} invocations with {vectors} vectors each, but the former must be a \
         power of two up to 1024, and the latter 1 to 1024"
    )]
    Producer {
        /// The invocations of a workgroup.
        workgroup_size: u32,
        /// The vectors of an invocation.
        vectors: u32,
    },

    /// [`Partials`](crate::Partials) that share bytes with a gradient, a parameter or other partials.
    #[error("{} in bytes {start}..{end} of one buffer", overlap_of_partials(first, second))]
    PartialsOverlap {
        /// The gradient whose bytes begin first.
        first: GradientId,
        /// The other gradient. It is the same one if a gradient overlaps its own partials.
        second: GradientId,
        /// The start of the shared bytes.
        start: u64,
        /// The end of the shared bytes.
        end: u64,
    },

    /// An invalid buffer or range of [`Partials`](crate::Partials).
    #[error("the partials of {error}")]
    InPartials {
        /// The error, worded as for the gradient itself.
        error: Box<Self>,
    },

    /// A mapped buffer. wgpu does not submit commands that use it.
    #[error(
        "gradient {gradient}: its buffer is mapped, but it must be unmapped before a plan is prepared for it"
    )]
    BufferMapped {
        /// The gradient.
        gradient: GradientId,
    },

    /// A buffer that wgpu rejects: it belongs to another device, has been destroyed, or is mapped. Or another resource that wgpu
    /// rejects, such as a pipeline cache of another device.
    #[error(
        "{}; buffers must belong to the clipper's device and be neither destroyed nor mapped: {message}",
        refused(gradient.as_ref())
    )]
    BufferRejected {
        /// The first gradient whose buffer was rejected. None for another resource, or for the source of a copied number.
        gradient: Option<GradientId>,
        /// The message of wgpu.
        message: String,
    },

    // The device.
    /// The requested device does not exist, or cannot be opened.
    #[error("there is no {wanted} to clip on: {found}")]
    NoDevice {
        /// The requested device.
        wanted: String,
        /// The available adapters, or the reason why it cannot be opened.
        found: String,
    },

    /// A limit of the device that is too small.
    #[error("{what} needs a {name} of at least {needed}, but the device allows {allowed}")]
    DeviceLimit {
        /// The object that needs more.
        what: &'static str,
        /// The name of the limit, as in `wgpu::Limits`.
        name: &'static str,
        /// The required value.
        needed: u64,
        /// The limit of the device.
        allowed: u64,
    },

    /// The device is out of memory.
    #[error("out of memory for {what}{}", size(*bytes))]
    OutOfMemory {
        /// The object that could not be allocated.
        what: &'static str,
        /// Its size in bytes; 0 if it is not known.
        bytes: u64,
    },

    /// The device was lost or destroyed.
    #[error("the device was lost or destroyed; open a new device, and make a new clipper and new plans")]
    DeviceLost,

    // Updates of a plan.
    /// A number of limits that differs from the number of groups.
    #[error("the number of limits is {given}, but the number of groups is {groups}, and each needs one")]
    LimitCount {
        /// The number of limits.
        given: usize,
        /// The number of groups.
        groups: usize,
    },

    /// A number of step counts, histories or windows that differs from the number of records.
    #[error("the number of {what} is {given}, but the number of records is {records}, and each needs one")]
    StateCount {
        /// The kind of state.
        what: &'static str,
        /// The number of values that were given, or kept from the step before.
        given: usize,
        /// The number of records.
        records: usize,
    },

    /// A group that the plan does not have.
    #[error("group {given} does not exist: {}", group_count(*groups))]
    NoSuchGroup {
        /// The group that was given.
        given: usize,
        /// The number of groups of the plan.
        groups: usize,
    },

    /// An update of a group's limit, in a plan that clips each gradient or row on its own.
    #[error("{what} sets the limit of a group, but this plan clips each gradient on its own")]
    NoGroupLimit {
        /// The method.
        what: &'static str,
    },

    /// A part that the plan does not have.
    #[error("part {given} does not exist: {}", part_count(*parts))]
    NoSuchPart {
        /// The part that was given.
        given: usize,
        /// The number of parts of the plan.
        parts: usize,
    },

    /// A number of gradients in `rebind` that differs from the number in the plan.
    #[error("{given} gradients were given, but the plan was prepared for {needed}")]
    RebindCount {
        /// The number of gradients that were given.
        given: usize,
        /// The number of gradients of the plan.
        needed: usize,
    },

    /// A gradient in `rebind` that differs from the plan's in more than buffer, range and label.
    #[error("gradient {gradient}: its {what} is {given}, but the plan was prepared for {needed}")]
    RebindMismatch {
        /// The gradient.
        gradient: GradientId,
        /// The property that differs.
        what: &'static str,
        /// Its value in the gradient that was given.
        given: String,
        /// Its value in the gradient of the plan.
        needed: String,
    },

    /// State or statistics that the clip of this plan does not keep.
    #[error("this plan keeps no {what}; add Clip::{with} to its clip")]
    NotEnabled {
        /// The kind of state.
        what: &'static str,
        /// The method of `Clip` that enables it.
        with: &'static str,
    },

    /// A fixed loss scale for a plan whose loss scale is [dynamic](crate::Clip::dynamic_loss_scale).
    #[error(
        "{what} sets a fixed loss scale, but this plan updates its own; call set_dynamic_loss_scale to replace it"
    )]
    DynamicLossScale {
        /// The method.
        what: &'static str,
    },

    /// A norm supplied to a clip that measures its own, or needs none.
    #[error("this clip takes no supplied norm: only Clip::by_supplied_norm does")]
    UnexpectedNorm,

    /// A buffer from which a number cannot be copied.
    #[error(
        "4 bytes at offset {offset} cannot be copied from a buffer of {len} bytes with the usages {usage}: the buffer \
         needs COPY_SRC and must hold all 4 bytes, and the offset must be a multiple of 4"
    )]
    CopySource {
        /// The offset of the number, in bytes.
        offset: u64,
        /// The size of the buffer, in bytes.
        len: u64,
        /// The usages of the buffer.
        usage: String,
    },

    /// A queue that does not belong to the plan's device.
    #[error(
        "the queue belongs to another device, but it must be that of the plan's device; nothing was written"
    )]
    ForeignQueue,

    /// A chunk of a [`cpu::Measurement`](crate::cpu::Measurement) that does not begin at a multiple of
    /// [`CHUNK_LEN`](crate::cpu::Measurement::CHUNK_LEN).
    #[error(
        "a chunk begins at element {at} of {}, but every chunk except the last must have a multiple of {multiple} elements",
        labelled(label.as_deref())
    )]
    MisalignedChunk {
        /// The label of the measurement.
        label: Option<Box<str>>,
        /// The start of the chunk, in elements from the start of its gradient.
        at: u64,
        /// The required divisor of `at`, in elements.
        multiple: u64,
    },

    /// A [`cpu::Measurement`](crate::cpu::Measurement) begun by a plan whose norm type or
    /// [`tensor_stats`](crate::Clip::tensor_stats) differs from that of the plan that finishes it.
    #[error(
        "the measurement of gradient {gradient} was begun by a plan with another norm type, or with another value of \
         tensor_stats"
    )]
    MeasurementMismatch {
        /// The gradient.
        gradient: GradientId,
    },

    // Sharded clips.
    /// An option that a [`ShardedClip`](crate::distributed::ShardedClip) does not have.
    #[error("a sharded clip cannot have {option}: {reason}")]
    NotSharded {
        /// The option.
        option: &'static str,
        /// The reason.
        reason: &'static str,
    },

    /// Rows or columns with norms of their own in a [`ShardedClip`](crate::distributed::ShardedClip).
    #[error(
        "gradient {gradient} has rows or columns with norms of their own, but a sharded clip has one norm for each gradient"
    )]
    ShardedUnits {
        /// The gradient.
        gradient: GradientId,
    },

    /// A number of records or gradients that differs from that of an earlier share, or of another process.
    #[error("this share has {given} {what}, but the sharded clip has {needed}")]
    ShardCount {
        /// Records or gradients.
        what: &'static str,
        /// Their number in the share.
        given: usize,
        /// Their number in earlier shares.
        needed: usize,
    },

    /// A share that was measured for another clip.
    #[error(
        "this share is that of another sharded clip: its norm type, its statistics, its groups or its tiles differ from those of \
         this clip"
    )]
    ForeignShare,

    /// A shard that does not lie in its gradient, or is not cut at the border of a tile.
    #[error(
        "gradient {gradient}: its {len} elements begin at element {offset} of gradient {whole} of the sharded clip, but {needed}"
    )]
    Shard {
        /// The gradient in the list of this process.
        gradient: GradientId,
        /// The index of the whole gradient.
        whole: usize,
        /// The start of the shard in the whole gradient, in elements.
        offset: u64,
        /// The number of elements of the shard.
        len: u64,
        /// What is required.
        needed: String,
    },

    /// A tile of a reproducible norm that is in no measured shard, or in more than one. All ranks return the same error.
    #[error(
        "the tile at element {element} of gradient {whole} of the sharded clip is in {shards} measured shards, but it must be in \
         exactly one: replicas are unmeasured on all ranks but one"
    )]
    TileCount {
        /// The index of the whole gradient.
        whole: usize,
        /// The first element of the tile.
        element: u64,
        /// The number of measured shards.
        shards: u64,
    },

    /// Different options on different ranks. All ranks return the same error, and no gradient is changed.
    #[error(
        "the ranks of the sharded clip differ in {option}{}, but it must be the same on all of them",
        from_to(given.as_ref())
    )]
    RanksDiffer {
        /// The option.
        option: &'static str,
        /// The smallest and the largest value, if they can be shown.
        given: Option<[String; 2]>,
    },

    /// A rank that could not measure its gradients. All ranks return this error, and no gradient is changed.
    #[error("rank {rank} could not measure its gradients{}", because(cause.as_deref()))]
    RankFailed {
        /// The first such rank.
        rank: usize,
        /// The error of that rank; `None` on other ranks.
        cause: Option<Box<Self>>,
    },

    /// An error about the gradients of one rank. All ranks return it.
    #[error("rank {rank}: {error}")]
    OnRank {
        /// The rank.
        rank: usize,
        /// The error.
        error: Box<Self>,
    },

    // Results.
    /// Non-finite gradients, under the policy [`NonFinite::Error`](crate::NonFinite::Error). The gradients of that record
    /// are unchanged.
    #[error(
        "the gradients{} were left unclipped: {} (the total norm is {})",
        of_record(*record),
        what_is_not_finite(gradient.as_ref()),
        total_norm.shown()
    )]
    NonFinite {
        /// The first gradient that holds an infinity or a NaN. None if only a supplied norm, the norm of a parameter, or the
        /// limit is infinite or NaN.
        gradient: Option<GradientId>,
        /// The norm.
        total_norm: f32,
        /// The index of the record, if there are several.
        record: Option<usize>,
    },

    /// A result of a clip that measured nothing: a clip by value, or a plan that was not encoded before.
    #[error(
        "no norm was measured: a clip by value measures none, and a plan measures its first one when the commands of \
         ClipPlan::encode or encode_norm run"
    )]
    NothingMeasured,

    /// [`Clip::by_supplied_norm`](crate::Clip::by_supplied_norm) without a norm.
    #[error(
        "no norm was supplied, but Clip::by_supplied_norm needs one: call ClipPlan::supply_norm or copy_norm for a plan \
         on a GPU, or clip_with_norm for slices"
    )]
    NormNotSupplied,

    /// A gradient that was not measured since the previous record: its part was not encoded, or the kernel that writes its
    /// [`Partials`](crate::Partials) did not run. No gradient of the record is changed, and the record says to skip the step.
    #[error(
        "gradient {gradient} was not measured in this step: ClipPlan::encode_part was not called for its part, or the \
         kernel that writes its partials did not run"
    )]
    PartMissing {
        /// The first such gradient.
        gradient: GradientId,
    },

    /// A read-back whose command encoder was not submitted before the wait.
    #[error("nothing to read back: the command encoder that read_back recorded into was never submitted")]
    NotSubmitted,

    /// A read-back whose command buffer wgpu refused when it was submitted.
    #[error(
        "nothing to read back: wgpu refused the submission with the commands of this read-back, so they never ran; \
         wgpu's validation error says why"
    )]
    SubmissionRejected,

    /// The error of one step of a [`ReadBackQueue`](crate::ReadBackQueue).
    #[error("step {step}: {error}")]
    InStep {
        /// The number that the step was pushed with.
        step: u64,
        /// The error that its ticket returned.
        error: Box<Self>,
    },
}

impl Error {
    pub(crate) fn parse(what: &'static str, given: &str, allowed: &'static str) -> Self {
        Self::Parse { what, given: given.to_owned(), allowed }
    }

    /// Returns whether the error is [`NonFinite`](Self::NonFinite), of this or of another rank.
    pub(crate) fn is_non_finite(&self) -> bool {
        match self {
            Self::NonFinite { .. } => true,
            Self::OnRank { error, .. } => error.is_non_finite(),
            _ => false,
        }
    }

    pub(crate) fn in_group(group: usize, error: Self) -> Self {
        Self::InGroup { group, error: Box::new(error) }
    }
}

fn size(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!(" ({bytes} bytes)") }
}

fn among_them(invalid: Option<f32>) -> String {
    invalid.map_or_else(String::new, |invalid| format!(", {} among them", invalid.shown()))
}

fn refused(gradient: Option<&GradientId>) -> String {
    gradient.map_or("wgpu refused a buffer or another resource".to_owned(), |gradient| {
        format!("gradient {gradient}: wgpu refused its buffer")
    })
}

fn labelled(label: Option<&str>) -> String {
    label.map_or("its gradient".to_owned(), |label| format!("gradient {}", Quoted(label)))
}

fn overlap_of_partials(first: &GradientId, second: &GradientId) -> String {
    if first == second {
        format!("the partials of gradient {first} overlap with the gradient or its parameter,")
    } else {
        format!(
            "the partials of one of gradients {first} and {second} overlap with the other, its parameter or its partials,"
        )
    }
}

fn from_to(given: Option<&[String; 2]>) -> String {
    given.map_or_else(String::new, |[one, other]| format!(" ({one} and {other})"))
}

fn because(cause: Option<&Error>) -> String {
    cause.map_or_else(String::new, |cause| format!(": {cause}"))
}

fn group_count(groups: usize) -> String {
    match groups {
        1 => "there is only group 0".to_owned(),
        _ => format!("the groups are 0 to {}", groups.saturating_sub(1)),
    }
}

fn part_count(parts: usize) -> String {
    match parts {
        0 => "this plan is not measured in parts; see Gradient::part".to_owned(),
        _ => format!("the parts are 0 to {}", parts - 1),
    }
}

fn of_record(record: Option<usize>) -> String {
    record.map_or_else(String::new, |record| format!(" of record {record}"))
}

fn what_is_not_finite(gradient: Option<&GradientId>) -> String {
    match gradient {
        Some(gradient) => format!("gradient {gradient} is the first with an infinity or a NaN"),
        None => "a supplied norm, the norm of a parameter or the limit is infinite or NaN".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{self, Gradient};
    use crate::{AutoClip, Clip, NonFinite, NormType, NormWindow};

    #[track_caller]
    fn says(error: &Error, message: &str) {
        assert_eq!(error.to_string(), message);
        // A printer of the chain of sources must not print a message twice.
        assert!(std::error::Error::source(error).is_none());
    }

    #[test]
    fn numbers_are_as_short_as_they_can_be() {
        let clip = Clip::by_global_norm(1.0);
        says(
            &clip.loss_scale(2.9e-39).checked().unwrap_err(),
            "the loss scale is 2.9e-39, but both it and its inverse must be positive and finite",
        );
        says(
            &Clip::by_global_norm(-1e30).checked().unwrap_err(),
            "the limit is -1e30, but it must be 0 or greater",
        );
        says(
            &Clip::by_value_range(1.0, -0.5).checked().unwrap_err(),
            "low is 1 and high is -0.5, but neither may be NaN, and low must not exceed high",
        );
    }

    #[test]
    fn groups_are_named_and_compared() {
        let clip = Clip::by_global_norm(1.0);
        says(
            &Clip::checked_groups(&[clip, Clip::by_global_norm(f32::NAN)]).unwrap_err(),
            "group 1: the limit is NaN, but it must be 0 or greater",
        );
        says(
            &Clip::checked_groups(&[clip, clip.norm_type(NormType::P(3.0))]).unwrap_err(),
            "the clips of groups 0 and 1 differ in norm_type (l2 and 3), but only their limits may differ",
        );
        let mut gradient = [1.0];
        let error = |groups: &[Clip], group, gradient: &mut [f32]| {
            let labelled = Gradient::f32(gradient).group(group).label("bias\u{1b}[31m");
            cpu::clip_groups(&mut [labelled], groups).unwrap_err()
        };
        says(
            &error(&[clip], 3, &mut gradient),
            "gradient 0 (\"bias\\u{1b}[31m\") belongs to group 3, but there is only group 0",
        );
        says(
            &error(&[clip; 2], 2, &mut gradient),
            "gradient 0 (\"bias\\u{1b}[31m\") belongs to group 2, but the groups are 0 to 1",
        );
    }

    #[test]
    fn partials_that_overlap_their_own_gradient_are_named_once() {
        let overlap = |second: usize| Error::PartialsOverlap {
            first: 0.into(),
            second: second.into(),
            start: 0,
            end: 8,
        };
        says(
            &overlap(0),
            "the partials of gradient 0 overlap with the gradient or its parameter, in bytes 0..8 of one buffer",
        );
        says(
            &overlap(1),
            "the partials of one of gradients 0 and 1 overlap with the other, its parameter or its partials, in bytes \
             0..8 of one buffer",
        );
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Error);
        let (mut fine, mut bad) = ([1.0], [1.0, f32::INFINITY]);
        let mut gradients = [Gradient::f32(&mut fine), Gradient::f32(&mut bad).group(1).label("head")];
        says(
            &cpu::clip_groups(&mut gradients, &[clip; 2]).unwrap_err(),
            "the gradients of record 1 were left unclipped: gradient 1 (\"head\") is the first with an infinity or a \
             NaN (the total norm is inf)",
        );
        let clip = Clip::by_supplied_norm(1.0).non_finite(NonFinite::Error);
        says(
            &cpu::clip_with_norm(&mut gradients[..1], clip, f32::NAN).unwrap_err(),
            "the gradients were left unclipped: a supplied norm, the norm of a parameter or the limit is infinite or \
             NaN (the total norm is NaN)",
        );
    }

    #[test]
    fn states_and_limits_are_named() {
        let both = Clip::by_parameter_norm(0.1, 1e-3).auto_clip(AutoClip::default());
        says(
            &both.checked().unwrap_err(),
            "only one of Clip::by_parameter_norm, Clip::z_clip and Clip::auto_clip may set the limits of a clip",
        );
        let auto_clip = AutoClip { percentile: 101.0, window: 2 };
        says(
            &Clip::by_norm(1.0).auto_clip(auto_clip).checked().unwrap_err(),
            "auto_clip has percentile 101 and window 2, but percentile must be in [0, 100], and window from 1 to 1024",
        );
        let clip = Clip::by_norm(1.0).auto_clip(AutoClip { percentile: 50.0, ..auto_clip });
        let mut plan = cpu::ClipPlan::new(&[clip]).unwrap();
        let mut error = |norms: &[f32]| {
            plan.set_norm_windows(&[NormWindow::default(), NormWindow { norms: norms.to_vec() }]).unwrap_err()
        };
        says(
            &error(&[1.0; 3]),
            "the window of record 1 has 3 norms, but it may have at most 2, each positive and finite",
        );
        says(
            &error(&[1.0, f32::NAN]),
            "the window of record 1 has 2 norms, NaN among them, but it may have at most 2, each positive and finite",
        );
    }

    #[test]
    fn options_without_a_norm_are_named() {
        says(
            &Clip::by_value(1.0).norm_type(NormType::L1).checked().unwrap_err(),
            "norm_type needs a norm, but Clip::by_value has none",
        );
    }
}
