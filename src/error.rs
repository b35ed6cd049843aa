//! What can go wrong. Every message says what was given and what is allowed.

/// Why a clip could not be prepared or carried out, or its outcome not read.
///
/// Errors come before anything is written: a call that returns one of the variants about its input has left every
/// gradient as it was. A `gradient` is an index into the list that the call was given.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A `max_norm` that is negative or NaN.
    #[error("max_norm is {given}, but it must be a number that is not negative")]
    MaxNorm {
        /// The `max_norm` of the clip.
        given: f32,
    },

    /// A `clip_value` that is negative or NaN.
    #[error("clip_value is {given}, but it must be a number that is not negative")]
    ClipValue {
        /// The `clip_value` of the clip.
        given: f32,
    },

    /// A range to clip to that is empty or has a NaN in it.
    #[error("the range to clip to is [{low}, {high}], but neither bound may be NaN, nor low above high")]
    ClipRange {
        /// The lower bound of the clip.
        low: f32,
        /// The upper bound of the clip.
        high: f32,
    },

    /// An epsilon that is negative, infinite or NaN.
    #[error("epsilon is {given}, but it must be a finite number that is not negative")]
    Epsilon {
        /// The epsilon of the clip.
        given: f32,
    },

    /// A loss scale that is not positive, or so large or small that it or its inverse is not finite.
    #[error("the loss scale is {given}, but it and its inverse must be positive and finite")]
    LossScale {
        /// The loss scale of the clip.
        given: f32,
    },

    /// A [`ZClip`](crate::ZClip) that makes no sense.
    #[error(
        "{given:?} is no ZClip: alpha must be from 0 to less than 1, z_threshold positive and finite, warm_up at least 1"
    )]
    ZClip {
        /// The one of the clip.
        given: crate::ZClip,
    },

    /// A history of norms that cannot have come about.
    #[error(
        "history {record} is {given:?}, but mean and deviation must be finite numbers that are not negative"
    )]
    History {
        /// Of which record.
        record: usize,
        /// The history.
        given: crate::NormHistory,
    },

    /// Counts or histories that are not as many as the records of a plan.
    #[error("{given} {what} were given, but the plan has {records}: one for each record")]
    Records {
        /// What was given.
        what: &'static str,
        /// How many.
        given: usize,
        /// How many there are.
        records: usize,
    },

    /// Something of a plan that its clip did not ask for.
    #[error("the plan has no {what}: its clip must ask for them with {with}")]
    NotAskedFor {
        /// What the plan does not have.
        what: &'static str,
        /// The method of `Clip` that asks for it.
        with: &'static str,
    },

    /// A clip whose limit follows past norms, where nothing is remembered from one call to the next.
    #[error(
        "Clip::z_clip needs the norms of past steps, so a plan: cpu::ClipPlan, or Clipper::prepare on a GPU"
    )]
    NeedsPlan,

    /// A floor for the norms of parameters that is negative, infinite or NaN.
    #[error(
        "the floor for the norms of parameters is {given}, but it must be a finite number that is not negative"
    )]
    ParameterFloor {
        /// The floor of the clip.
        given: f32,
    },

    /// A clip whose limit is to follow both the norms of parameters and those of past steps.
    #[error("a clip by_parameter_norm has its limits from the parameters, so z_clip cannot set them too")]
    TwoLimits,

    /// A gradient without a parameter, in a clip by the norms of parameters.
    #[error(
        "gradient {gradient} has no parameter, but Clip::by_parameter_norm needs the one of each gradient that it measures"
    )]
    NoParameter {
        /// Which gradient.
        gradient: usize,
    },

    /// A parameter that has not as many elements as its gradient.
    #[error("the parameter of gradient {gradient} has {given} elements, but the gradient has {needed}")]
    ParameterLength {
        /// Which gradient.
        gradient: usize,
        /// How many elements the parameter has.
        given: u64,
        /// How many elements the gradient has.
        needed: u64,
    },

    /// Something is wrong with where a parameter lies.
    #[error("the parameter of {error}")]
    Parameter {
        /// What is wrong, as it would be said of the gradient.
        #[source]
        error: Box<Self>,
    },

    /// A gradient that cannot be cut into so many rows of the same length.
    #[error(
        "gradient {gradient} has {elements} elements, which cannot be cut into {rows} rows of the same length"
    )]
    Rows {
        /// Which gradient.
        gradient: usize,
        /// How many rows it was to have.
        rows: u64,
        /// How many elements it has.
        elements: u64,
    },

    /// A norm type that does not exist, or that this kind of clip does not have.
    #[error("the norm type is {given:?}, but p must be a number, and a clip by root mean square has L2 only")]
    NormType {
        /// The norm type of the clip.
        given: crate::NormType,
    },

    /// An option that speaks of a norm, on a clip by value, which has none.
    #[error(
        "a clip by value measures no norm: norm_type, epsilon, non_finite, loss_scale, coefficient_only, tensor_stats, count_steps and \
         z_clip need a clip by norm"
    )]
    NeedsNorm,

    /// A gradient of a group for which there is no clip.
    #[error(
        "gradient {gradient} belongs to group {given}, but the number of groups that have a clip is {groups}"
    )]
    Group {
        /// Which gradient.
        gradient: usize,
        /// Its group.
        given: usize,
        /// How many groups there are.
        groups: usize,
    },

    /// Two groups whose clips differ in more than their limits.
    #[error("the clips of groups {first} and {second} differ in more than their limits")]
    Groups {
        /// A group.
        first: usize,
        /// The first group whose clip differs from that.
        second: usize,
    },

    /// Gradients that are not finite, under the policy [`NonFinite::Error`](crate::NonFinite::Error). They are
    /// unchanged.
    #[error("the total norm is {total_norm}, so the gradients were left unclipped; the first that is not finite is {}", name(*gradient))]
    NonFinite {
        /// The first gradient that holds an infinity or a NaN; none where the norm of finite ones exceeds `f32::MAX`.
        gradient: Option<usize>,
        /// The norm.
        total_norm: f32,
    },

    /// New limits that are not as many as the groups.
    #[error("{given} limits were given, but there are {groups} groups, and each has one")]
    Limits {
        /// How many limits there are.
        given: usize,
        /// How many groups there are.
        groups: usize,
    },

    /// A clip by a supplied norm, without one.
    #[error(
        "Clip::by_supplied_norm needs a norm: ClipPlan::supply_norm or copy_norm gives it to a plan, and on the CPU \
         cpu::clip_with_norm takes it"
    )]
    NormMissing,

    /// A norm supplied to a plan that does not ask for one.
    #[error("this plan does not take a norm: only Clip::by_supplied_norm does")]
    MeasuresItself,

    /// A buffer from which a number cannot be copied.
    #[error(
        "4 bytes at offset {offset} cannot be copied from a buffer of {len} bytes with the usages {usage}: it needs \
         COPY_SRC, and the offset must be a multiple of 4"
    )]
    Source {
        /// Where the number lies, in bytes.
        offset: u64,
        /// The size of the buffer, in bytes.
        len: u64,
        /// The usages of the buffer.
        usage: String,
    },

    /// No clip at all for the groups of gradients.
    #[error("there is no clip: groups of gradients need one each")]
    NoClip,

    /// The buffer of a gradient cannot be bound as storage.
    #[error("gradient {gradient}: its buffer was created with the usages {given}, but it needs {needed}")]
    Usage {
        /// Which gradient.
        gradient: usize,
        /// The usages of its buffer.
        given: String,
        /// The usage that is missing.
        needed: &'static str,
    },

    /// A gradient that does not begin or end at a multiple of its element's size.
    #[error("gradient {gradient}: its {what} is {given} bytes, but it must be a multiple of {multiple}")]
    Misaligned {
        /// Which gradient.
        gradient: usize,
        /// What is misaligned: its offset or its length.
        what: &'static str,
        /// The offset or length, in bytes.
        given: u64,
        /// What it must be a multiple of, in bytes.
        multiple: u64,
    },

    /// A gradient that reaches past the end of its buffer, or ends before it begins.
    #[error("gradient {gradient}: it covers bytes {start}..{end}, but its buffer has {len} bytes")]
    OutOfBounds {
        /// Which gradient.
        gradient: usize,
        /// Its first byte.
        start: u64,
        /// The byte after its last one.
        end: u64,
        /// The size of its buffer, in bytes.
        len: u64,
    },

    /// Two gradients that share bytes: they would be counted and scaled twice.
    #[error(
        "gradients {first} and {second} overlap in bytes {start}..{end} of one buffer, and would be scaled twice there"
    )]
    Overlap {
        /// The one that begins first in the buffer.
        first: usize,
        /// The other one.
        second: usize,
        /// The first byte that they share.
        start: u64,
        /// The byte after the last one that they share.
        end: u64,
    },

    /// The device allows less than is needed.
    #[error("{what} needs {name} of at least {needed}, but the device allows {allowed}")]
    Limit {
        /// What needs it.
        what: &'static str,
        /// The name of the limit, as in `wgpu::Limits`.
        name: &'static str,
        /// The least that would do.
        needed: u64,
        /// What the device has.
        allowed: u64,
    },

    /// A buffer that is mapped, so that wgpu would not submit what uses it.
    #[error(
        "gradient {gradient}: its buffer is mapped, but it must be unmapped before a plan is prepared for it"
    )]
    Mapped {
        /// Which gradient.
        gradient: usize,
    },

    /// wgpu refused a buffer: it belongs to another device, has been destroyed, or is mapped.
    #[error("{}, which must belong to the clipper's device and not be destroyed or mapped: {message}", refused(*gradient))]
    Refused {
        /// The first gradient whose buffer was refused; none where it is the source of a number.
        gradient: Option<usize>,
        /// What wgpu said.
        message: String,
    },

    /// The device has no room for what was asked.
    #[error("out of memory for {what} ({bytes} bytes)")]
    OutOfMemory {
        /// What was to be allocated.
        what: &'static str,
        /// Its size in bytes.
        bytes: u64,
    },

    /// A queue of another device than the plan's.
    #[error("the queue belongs to another device than the plan, so nothing was written")]
    Queue,

    /// A read-back whose command buffer wgpu refused when it was submitted.
    #[error(
        "nothing to read back: wgpu refused the submission with the commands of this read-back, so they never ran; \
         its validation error says why"
    )]
    Rejected,

    /// A read-back was waited for whose command encoder had not been submitted.
    #[error("nothing to read back: the command encoder that read_back recorded into was never submitted")]
    NotSubmitted,

    /// The device was lost or destroyed.
    #[error("the device was lost or destroyed; a new one is needed, with a new clipper and new plans")]
    DeviceLost,

    /// A read-back where nothing was measured: of a clip by value, or before the plan was encoded for the first time.
    #[error(
        "there is nothing to read back: no norm was measured before it (a clip by value measures none; ClipPlan::encode \
         and encode_norm do)"
    )]
    NothingMeasured,

    /// The device that was asked for does not exist, or cannot be opened.
    #[error("there is no {wanted} to clip on: {found}")]
    NoDevice {
        /// What was asked for.
        wanted: String,
        /// What there is instead, or what is wrong with it.
        found: String,
    },
}

fn refused(gradient: Option<usize>) -> String {
    gradient.map_or("wgpu refused a buffer".to_owned(), |index| {
        format!("gradient {index}: wgpu refused its buffer")
    })
}

fn name(gradient: Option<usize>) -> String {
    gradient.map_or("none: only their norm exceeds f32".to_owned(), |index| format!("gradient {index}"))
}
