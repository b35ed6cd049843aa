//! Gradients that are not in memory all at once. They are measured piece by piece, and then scaled piece by piece.

use half::{bf16, f16};

use super::ClipPlan;
use crate::clip::{ByNorm, Operation, Scope};
use crate::cpu::gradient::{Elements, Gradient};
use crate::cpu::kernels::{Change, Counts};
use crate::cpu::measured::Measured;
use crate::cpu::parallel::{self, PIECE, Reduction};
use crate::cpu::records::{self, Basis};
use crate::cpu::stats::Stats;
use crate::float_state::in_default_modes;
use crate::{ClipRecord, Error, GradientId, NormType};

/// Measures one gradient piece by piece, for gradients that do not fit into memory or arrive in parts.
///
/// [`ClipPlan::measurement`] begins a measurement. [`ClipPlan::conclude_measurements`] computes the records from the
/// measurements of all gradients, with the same bits as [`ClipPlan::clip`]. [`scale`] then applies a record to each piece.
///
/// A measurement keeps some 16 bytes for each [`PIECE`](Self::PIECE) elements, or 32 with
/// [`tensor_stats`](crate::Clip::tensor_stats).
///
/// ```
/// use gradclip::cpu::{self, Gradient, Measurement};
/// use gradclip::{Clip, Error};
///
/// let mut gradient = vec![0.25_f32; 3 * Measurement::PIECE + 7];
/// let mut plan = cpu::ClipPlan::new(&[Clip::by_global_norm(1.0)])?;
/// let mut measurement = plan.measurement()?;
/// for piece in gradient.chunks(Measurement::PIECE) {
///     measurement.add_f32(piece)?;
/// }
/// let records = plan.conclude_measurements(&[measurement])?;
/// assert_eq!(records[0], cpu::measure(&[&gradient], 1.0)?);
/// for piece in gradient.chunks_mut(1000) {
///     cpu::scale(&mut [Gradient::f32(piece)], &records[0]);
/// }
/// assert!((cpu::total_norm(&[&gradient]) - 1.0).abs() < 1e-6);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Measurement {
    norm_type: NormType,
    counts: bool,
    group: usize,
    label: Option<Box<str>>,
    /// The elements so far.
    len: usize,
    /// What was found in each [`PIECE`] elements. The order of a sum depends on how many there will be.
    pieces: Vec<(Measured, Counts)>,
}

impl Measurement {
    /// The block length in elements: every piece of a gradient except the last must have a multiple of it.
    pub const PIECE: usize = PIECE;

    /// Sets the group of the gradient: the index of its clip in the plan. The default is 0.
    #[must_use]
    pub const fn group(mut self, group: usize) -> Self {
        self.group = group;
        self
    }

    /// Sets the name of the gradient, for errors.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Adds the next elements, in single precision.
    ///
    /// # Errors
    ///
    /// [`Error::MisalignedChunk`] if the number of elements added before is not a multiple of [`PIECE`](Self::PIECE).
    pub fn add_f32(&mut self, elements: &[f32]) -> Result<(), Error> {
        self.add(Elements::F32(elements))
    }

    /// Adds the next elements, in half precision.
    ///
    /// # Errors
    ///
    /// As [`add_f32`](Self::add_f32).
    pub fn add_f16(&mut self, elements: &[f16]) -> Result<(), Error> {
        self.add(Elements::F16(elements))
    }

    /// Adds the next elements, in bfloat16.
    ///
    /// # Errors
    ///
    /// As [`add_f32`](Self::add_f32).
    pub fn add_bf16(&mut self, elements: &[bf16]) -> Result<(), Error> {
        self.add(Elements::Bf16(elements))
    }

    fn add(&mut self, elements: Elements<'_>) -> Result<(), Error> {
        if elements.len() == 0 {
            return Ok(());
        }
        if !self.len.is_multiple_of(PIECE) {
            return Err(Error::MisalignedChunk {
                label: self.label.clone(),
                at: self.len as u64,
                multiple: PIECE as u64,
            });
        }
        self.len += elements.len();
        // Each as if it were a gradient, since those are measured side by side.
        let pieces: Vec<_> = elements.pieces(PIECE).collect();
        if self.counts {
            self.pieces.extend(parallel::reduce(&pieces, &Stats(self.norm_type)));
        } else {
            let found = parallel::reduce(&pieces, &self.norm_type);
            self.pieces.extend(found.into_iter().map(|measured| (measured, Counts::default())));
        }
        Ok(())
    }

    fn id(&self, index: usize) -> GradientId {
        GradientId::new(index, self.label.as_deref())
    }

    /// What was found in the whole gradient.
    fn found(&self) -> (Measured, Counts) {
        let reduction = Stats(self.norm_type);
        reduction.gradient(parallel::whole(self.len, &self.pieces, &reduction))
    }
}

impl ClipPlan {
    /// Begins the measurement of one gradient of a step, for a gradient that is not in memory all at once.
    ///
    /// # Errors
    ///
    /// [`Error::NeedsNorm`] for a clip by value, [`Error::NormNotSupplied`] for one by a supplied norm.
    pub fn measurement(&self) -> Result<Measurement, Error> {
        let ByNorm { norm_type, tensor_stats: counts, .. } = self.measures("measurement")?;
        Ok(Measurement { norm_type, counts, group: 0, label: None, len: 0, pieces: Vec::new() })
    }

    /// Concludes a step whose gradients were measured in pieces. Returns the same records as [`clip`](Self::clip), and updates
    /// the counts, histories and statistics of the plan like it. It changes no gradient: [`scale`] does.
    ///
    /// # Errors
    ///
    /// Those of [`clip`](Self::clip) and [`measurement`](Self::measurement); [`Error::MeasurementMismatch`] if a measurement was
    /// begun by a plan with another norm type or another value of [`tensor_stats`](crate::Clip::tensor_stats).
    pub fn conclude_measurements(&mut self, gradients: &[Measurement]) -> Result<Vec<ClipRecord>, Error> {
        let norm = self.measures("conclude_measurements")?;
        let groups = self.operations.len();
        for (index, measurement) in gradients.iter().enumerate() {
            let gradient = || measurement.id(index);
            let given = measurement.group;
            if given >= groups {
                return Err(Error::GroupWithoutClip { gradient: gradient(), given, groups });
            }
            if matches!(norm.scope, Scope::Parameter { .. }) {
                return Err(Error::MissingParameter { gradient: gradient() });
            }
            if (measurement.norm_type, measurement.counts) != (norm.norm_type, norm.tensor_stats) {
                return Err(Error::MeasurementMismatch { gradient: gradient() });
            }
        }
        let (bases, stats) = in_default_modes(|| {
            let found: Vec<_> = gradients.iter().map(Measurement::found).collect();
            let stats = found.iter().filter(|_| norm.tensor_stats).map(|&found| Stats::of(found, &norm));
            (self.bases(gradients, &found, &norm), stats.collect())
        });
        self.remember(bases.len())?;
        self.tensor_stats = stats;
        self.records(&norm, &bases, |index| gradients[index].label.as_deref())
    }

    /// How this plan measures, for the method `what`.
    fn measures(&self, what: &'static str) -> Result<ByNorm, Error> {
        match self.operations[0] {
            Operation::Norm(norm) if norm.scope == Scope::Supplied => Err(Error::NormNotSupplied),
            Operation::Norm(norm) => Ok(norm),
            Operation::Clamp { .. } => Err(Error::NeedsNorm { what, clip: "a clip by value" }),
        }
    }

    fn bases(&self, gradients: &[Measurement], found: &[(Measured, Counts)], norm: &ByNorm) -> Vec<Basis> {
        let limits = self.limits();
        // What shares a record, in the order of the gradients.
        let members: Vec<Vec<usize>> = if norm.scope.is_together() {
            let mut members = vec![Vec::new(); limits.len()];
            for (index, gradient) in gradients.iter().enumerate() {
                members[gradient.group].push(index);
            }
            members
        } else {
            (0..gradients.len()).map(|index| vec![index]).collect()
        };
        let basis = |(record, members): (usize, &Vec<usize>)| {
            let parts: Vec<_> = members.iter().map(|&index| (gradients[index].len, found[index].0)).collect();
            let limit = if norm.scope.is_together() {
                limits[record]
            } else {
                let Measurement { group, len, .. } = gradients[record];
                norm.scope.limit(group, len as u64, true).among(&limits)
            };
            Basis { measured: records::together(&parts, norm, |index| members[index]), limit: limit.into() }
        };
        members.iter().enumerate().map(basis).collect()
    }
}

/// Multiplies gradients in place by the factor of a record. This is the second half of a clip by norm, for pieces of gradients
/// whose record is known. The record applies to all of `gradients`, whatever their groups and rows.
///
/// Nothing is written if the record's [`factor`](ClipRecord::factor) is 1. [Unscaled](Gradient::unscaled) gradients are never
/// written.
pub fn scale(gradients: &mut [Gradient<'_>], record: &ClipRecord) {
    let Some(change) = Change::of(record) else { return };
    let elements = gradients.iter_mut().filter_map(Gradient::scaled_elements);
    parallel::change(&mut elements.map(|elements| (elements, change)).collect::<Vec<_>>());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clip, NonFinite, ZClip};

    enum Values {
        F32(Vec<f32>),
        F16(Vec<f16>),
        Bf16(Vec<bf16>),
    }

    impl Values {
        fn gradient(&mut self) -> Gradient<'_> {
            match self {
                Self::F32(values) => Gradient::f32(values),
                Self::F16(values) => Gradient::f16(values),
                Self::Bf16(values) => Gradient::bf16(values),
            }
        }

        /// Adds all of it, in pieces of this length.
        fn add_to(&self, measurement: &mut Measurement, len: usize) -> Result<(), Error> {
            match self {
                Self::F32(values) => values.chunks(len).try_for_each(|piece| measurement.add_f32(piece)),
                Self::F16(values) => values.chunks(len).try_for_each(|piece| measurement.add_f16(piece)),
                Self::Bf16(values) => values.chunks(len).try_for_each(|piece| measurement.add_bf16(piece)),
            }
        }

        fn scale(&mut self, len: usize, record: &ClipRecord) {
            match self {
                Self::F32(values) => {
                    values.chunks_mut(len).for_each(|piece| scale(&mut [Gradient::f32(piece)], record));
                }
                Self::F16(values) => {
                    values.chunks_mut(len).for_each(|piece| scale(&mut [Gradient::f16(piece)], record));
                }
                Self::Bf16(values) => {
                    values.chunks_mut(len).for_each(|piece| scale(&mut [Gradient::bf16(piece)], record));
                }
            }
        }

        fn bits(&self) -> Vec<u32> {
            match self {
                Self::F32(values) => values.iter().map(|x| x.to_bits()).collect(),
                Self::F16(values) => values.iter().map(|x| x.to_bits().into()).collect(),
                Self::Bf16(values) => values.iter().map(|x| x.to_bits().into()).collect(),
            }
        }
    }

    /// Gradients of every type and of lengths around those at which sums are cut, whose sum shows another order of addition.
    fn gradients() -> Vec<Values> {
        let mut state = 1_u32;
        let mut number = || {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            (f32::from((state >> 16) as u16) - 32768.0) / 1e3
        };
        let lens =
            [5 * PIECE, 0, 1, PIECE - 1, (1 << 18) + 3 * PIECE + 5, PIECE, 700, 2 * PIECE + 1, 3, 90_000];
        let mut values = |(index, len): (usize, usize)| {
            let values = (0..len).map(|_| number());
            match index % 3 {
                0 => Values::F32(values.collect()),
                1 => Values::F16(values.map(f16::from_f32).collect()),
                _ => Values::Bf16(values.map(bf16::from_f32).collect()),
            }
        };
        lens.into_iter().enumerate().map(&mut values).collect()
    }

    fn clips() -> Vec<Clip> {
        let p = NormType::P;
        let norm_types =
            [NormType::L1, NormType::L2, NormType::Inf, p(3.0), p(-1.5), p(0.0), p(f32::NEG_INFINITY)];
        let by_type = norm_types.map(|norm_type| Clip::by_global_norm(1.0).norm_type(norm_type));
        let z_clip = ZClip { warm_up: 1, ..ZClip::default() };
        by_type
            .into_iter()
            .chain([
                Clip::by_norm(2.0),
                Clip::by_norm(2.0).norm_type(p(0.0)),
                Clip::by_rms(0.5),
                Clip::by_global_norm(1e9).loss_scale(64.0),
                Clip::by_global_norm(f32::INFINITY).z_clip(z_clip),
            ])
            .collect()
    }

    #[test]
    fn pieces_give_the_bits_of_the_whole() {
        for clip in clips().into_iter().flat_map(|clip| [clip, clip.tensor_stats()]) {
            for len in [PIECE, 3 * PIECE, 1 << 20] {
                let clips = [clip, clip];
                let (mut plan, mut in_pieces) =
                    (ClipPlan::new(&clips).unwrap(), ClipPlan::new(&clips).unwrap());
                for step in 0..2 {
                    let (mut whole, mut cut) = (gradients(), gradients());
                    let list = whole.iter_mut().map(Values::gradient);
                    let mut list: Vec<_> =
                        list.enumerate().map(|(i, gradient)| gradient.group(i % 2)).collect();
                    let expected = plan.clip(&mut list).unwrap();

                    let mut measurements = Vec::new();
                    for (index, values) in cut.iter().enumerate() {
                        let mut measurement = in_pieces.measurement().unwrap().group(index % 2);
                        values.add_to(&mut measurement, len).unwrap();
                        measurements.push(measurement);
                    }
                    let records = in_pieces.conclude_measurements(&measurements).unwrap();
                    assert_eq!(records, expected, "{clip:?}, step {step}, pieces of {len}");
                    assert_eq!(in_pieces.tensor_stats(), plan.tensor_stats(), "{clip:?}");
                    assert_eq!(in_pieces.step_counts(), plan.step_counts(), "{clip:?}");
                    assert_eq!(in_pieces.histories(), plan.histories(), "{clip:?}");

                    let own = records.len() == cut.len();
                    for (index, values) in cut.iter_mut().enumerate() {
                        values.scale(len, &records[if own { index } else { index % 2 }]);
                    }
                    let same = cut.iter().zip(&whole).all(|(cut, whole)| cut.bits() == whole.bits());
                    assert!(same, "{clip:?}, pieces of {len}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Error);
        let mut plan = ClipPlan::new(&[clip, clip]).unwrap();
        let mut fine = plan.measurement().unwrap();
        fine.add_f32(&[3.0]).unwrap();
        let mut broken = plan.measurement().unwrap().group(1).label("broken");
        broken.add_bf16(&vec![bf16::ONE; PIECE]).unwrap();
        broken.add_bf16(&[bf16::NEG_INFINITY]).unwrap();
        let gradient = Some(GradientId { index: 2, label: Some("broken".into()) });
        let error = Error::NonFinite { gradient, total_norm: f32::INFINITY, record: Some(1) };
        assert_eq!(plan.conclude_measurements(&[fine.clone(), fine, broken]), Err(error));
    }

    #[test]
    fn misuse_is_an_error() {
        let mut plan = ClipPlan::new(&[Clip::by_global_norm(1.0)]).unwrap();
        let mut odd = plan.measurement().unwrap();
        odd.add_f32(&[1.0; 3]).unwrap();
        odd.add_f32(&[]).unwrap();
        let error = odd.clone().label("w").add_f32(&[1.0]).unwrap_err();
        assert_eq!(error, Error::MisalignedChunk { label: Some("w".into()), at: 3, multiple: PIECE as u64 });
        assert!(
            error.to_string().starts_with("a piece begins at element 3 of gradient \"w\", but"),
            "{error}"
        );
        assert_eq!(
            plan.conclude_measurements(&[odd.clone()]).unwrap()[0].total_norm,
            3.0_f32.sqrt(),
            "the third is not counted"
        );

        let grouped = odd.clone().group(1);
        assert_eq!(
            plan.conclude_measurements(&[odd.clone(), grouped]),
            Err(Error::GroupWithoutClip { gradient: 1.into(), given: 1, groups: 1 })
        );
        for other in [Clip::by_norm(1.0).norm_type(NormType::L1), Clip::by_norm(1.0).tensor_stats()] {
            let mut other = ClipPlan::new(&[other]).unwrap();
            assert_eq!(
                other.conclude_measurements(&[odd.clone()]),
                Err(Error::MeasurementMismatch { gradient: 0.into() })
            );
        }
        let mut relative = ClipPlan::new(&[Clip::by_parameter_norm(0.1, 0.1)]).unwrap();
        assert_eq!(
            relative.conclude_measurements(&[odd]),
            Err(Error::MissingParameter { gradient: 0.into() })
        );
        let mut supplied = ClipPlan::new(&[Clip::by_supplied_norm(1.0)]).unwrap();
        assert_eq!(supplied.measurement().err(), Some(Error::NormNotSupplied));
        assert_eq!(supplied.conclude_measurements(&[]), Err(Error::NormNotSupplied));
        let mut by_value = ClipPlan::new(&[Clip::by_value(1.0)]).unwrap();
        let needs_norm = |what| Error::NeedsNorm { what, clip: "a clip by value" };
        assert_eq!(by_value.measurement().err(), Some(needs_norm("measurement")));
        assert_eq!(by_value.conclude_measurements(&[]), Err(needs_norm("conclude_measurements")));
    }

    #[test]
    fn what_is_unscaled_stays() {
        let record = crate::cpu::measure(&[&[3.0, 4.0]], 1.0).unwrap();
        let (mut scaled, mut kept) = ([5.0], [5.0]);
        scale(&mut [Gradient::f32(&mut scaled).group(9), Gradient::f32(&mut kept).unscaled()], &record);
        assert_eq!((scaled, kept), ([5.0 * record.factor], [5.0]));
    }
}
