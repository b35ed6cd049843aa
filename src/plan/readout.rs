//! `Readout`: what the host can read of a plan, and how bytes become values.

use bytemuck::Pod;

use super::labels::Labels;
use super::{Plan, TilePartials};
use crate::loss_scale::{LossScale, LossScaleState};
use crate::{ClipRecord, Error, NormHistory, NormWindow, StepCounts, TensorStats};

/// A value that the host can read: the buffer to copy, and how to decode its bytes.
#[derive(Clone, Debug)]
pub struct Readout<R> {
    buffer: usize,
    decode: Decode<R>,
    /// The labels for errors about a gradient.
    labels: Labels,
}

/// Converts the contents of a buffer.
type Decode<R> = fn(&[u8]) -> Result<R, Error>;

impl<R> Readout<R> {
    /// Returns the buffer, an index into [`Plan::buffers`].
    #[must_use]
    pub const fn buffer(&self) -> usize {
        self.buffer
    }

    /// Decodes the [readable](super::PlanBuffer::readable) bytes of the buffer.
    ///
    /// # Errors
    ///
    /// [`Error::NothingMeasured`], [`Error::NormNotSupplied`], [`Error::PartMissing`] or [`Error::NonFinite`], as for
    /// [`ReadBack::wait`](crate::ReadBack::wait).
    ///
    /// # Panics
    ///
    /// If there are fewer bytes.
    pub fn decode(&self, bytes: &[u8]) -> Result<R, Error> {
        (self.decode)(bytes).map_err(|error| self.labels.name(error))
    }
}

impl Plan {
    /// Returns the buffer of the records; see [`ClipPlan::record_buffer`](crate::ClipPlan::record_buffer). None for a clip by value.
    #[must_use]
    pub fn record_buffer(&self) -> Option<usize> {
        self.outcome.as_ref().map(|outcome| outcome.records)
    }

    /// Returns the first record.
    ///
    /// # Errors
    ///
    /// [`Error::NothingMeasured`] for a clip by value.
    pub fn record(&self) -> Result<Readout<ClipRecord>, Error> {
        let outcome = self.outcome.as_ref().ok_or(Error::NothingMeasured)?;
        Ok(self.readout(outcome.records, if outcome.is_error { first_finite } else { first }))
    }

    /// Returns all records.
    ///
    /// # Errors
    ///
    /// [`Error::NothingMeasured`] for a clip by value.
    pub fn all_records(&self) -> Result<Readout<Vec<ClipRecord>>, Error> {
        let outcome = self.outcome.as_ref().ok_or(Error::NothingMeasured)?;
        Ok(self.readout(outcome.records, if outcome.is_error { all_finite } else { all_measured }))
    }

    /// Returns the statistics of each gradient.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`].
    pub fn tensor_stats(&self) -> Result<Readout<Vec<TensorStats>>, Error> {
        let stats = self.outcome.as_ref().and_then(|outcome| outcome.tensor_stats);
        let error = Error::NotEnabled { what: "statistics of its gradients", with: "tensor_stats" };
        Ok(self.readout(stats.ok_or(error)?, |bytes| {
            let stats: Vec<TensorStats> = all(bytes);
            if stats.iter().all(TensorStats::is_measured) { Ok(stats) } else { Err(Error::NothingMeasured) }
        }))
    }

    /// Returns the dynamic loss scale.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`].
    pub fn dynamic_loss_scale(&self) -> Result<Readout<LossScale>, Error> {
        Ok(self.readout(self.buffer_of_loss_scale()?, |bytes| {
            LossScale::from_state(bytemuck::pod_read_unaligned(&bytes[..size_of::<LossScaleState>()]))
        }))
    }

    /// Returns the step counts of each record.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`].
    pub fn step_counts(&self) -> Result<Readout<Vec<StepCounts>>, Error> {
        Ok(self.readout(self.buffer_of_step_counts()?, |bytes| Ok(all(bytes))))
    }

    /// Returns the norm histories of each record.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`].
    pub fn histories(&self) -> Result<Readout<Vec<NormHistory>>, Error> {
        Ok(self.readout(self.buffer_of_histories()?, |bytes| Ok(all(bytes))))
    }

    /// Returns the last norms of each record.
    ///
    /// # Errors
    ///
    /// [`Error::NotEnabled`].
    pub fn norm_windows(&self) -> Result<Readout<Vec<NormWindow>>, Error> {
        let (_, windows) = self.auto_clip()?;
        Ok(self.readout(windows, |bytes| Ok(NormWindow::from_device_words(&all(bytes)))))
    }

    /// Returns the readout of all words of all banks of partials, and the banks to copy into its buffer first.
    pub(crate) fn tile_partials(&self) -> Option<(Readout<Vec<u32>>, &[usize])> {
        let partials = self.outcome.as_ref()?.tile_partials.as_ref()?;
        Some((self.readout(partials.copy, |bytes| Ok(all(bytes))), &partials.banks))
    }

    /// Returns the index of the first word of each of `count` partials in [`tile_partials`](Self::tile_partials), in the order of the
    /// gradients and their tiles.
    pub(crate) fn places_of_partials(&self, count: usize) -> Vec<usize> {
        let partials = self.outcome.as_ref().and_then(|outcome| outcome.tile_partials.as_ref());
        let Some(TilePartials { banks, locations, words, .. }) = partials else { return Vec::new() };
        let starts = banks.iter().scan(0, |next, &bank| {
            let start = *next;
            *next += usize::try_from(self.buffers[bank].bytes / 4).expect("the partials fit into memory");
            Some(start)
        });
        let starts: Vec<usize> = starts.collect();
        let place = |partial: usize| match locations.get(partial) {
            // An index in a bank times the number of banks, plus the bank.
            Some(&location) => {
                starts[location as usize % banks.len()] + location as usize / banks.len() * words
            }
            None => partial * words,
        };
        (0..count).map(place).collect()
    }

    pub(super) fn buffer_of_loss_scale(&self) -> Result<usize, Error> {
        let outcome = self.outcome.as_ref().filter(|outcome| outcome.has_dynamic_scale);
        let error = Error::NotEnabled { what: "dynamic loss scale", with: "dynamic_loss_scale" };
        outcome.map(|outcome| outcome.norm_params).ok_or(error)
    }

    pub(super) fn buffer_of_step_counts(&self) -> Result<usize, Error> {
        let counts = self.outcome.as_ref().and_then(|outcome| outcome.step_counts);
        counts.ok_or(Error::NotEnabled { what: "step counts", with: "count_steps" })
    }

    pub(super) fn buffer_of_histories(&self) -> Result<usize, Error> {
        let histories = self.outcome.as_ref().and_then(|outcome| outcome.histories);
        histories.ok_or(Error::NotEnabled { what: "norm histories", with: "z_clip" })
    }

    fn readout<R>(&self, buffer: usize, decode: Decode<R>) -> Readout<R> {
        Readout { buffer, decode, labels: self.origin.set.labels.clone() }
    }
}

/// Returns all values of a buffer.
fn all<T: Pod>(bytes: &[u8]) -> Vec<T> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// Returns all records. It is an error if no norm pass wrote one of them.
fn all_measured(bytes: &[u8]) -> Result<Vec<ClipRecord>, Error> {
    let records: Vec<ClipRecord> = all(bytes);
    records.iter().try_for_each(ClipRecord::check_measured)?;
    Ok(records)
}

/// Returns the first of [`all_measured`].
fn first(bytes: &[u8]) -> Result<ClipRecord, Error> {
    // A clip of each gradient on its own has no record if there is no gradient.
    Ok(all_measured(bytes)?.first().copied().unwrap_or(ClipRecord::UNCLIPPED))
}

/// [`all_measured`] under the policy that makes non-finite gradients an error.
fn all_finite(bytes: &[u8]) -> Result<Vec<ClipRecord>, Error> {
    let records = all_measured(bytes)?;
    match records.iter().position(ClipRecord::non_finite) {
        Some(index) => Err(records[index].non_finite_error(index, records.len(), |_| None)),
        None => Ok(records),
    }
}

/// [`first`] under the policy that makes non-finite gradients an error.
fn first_finite(bytes: &[u8]) -> Result<ClipRecord, Error> {
    all_finite(bytes)?;
    first(bytes)
}
