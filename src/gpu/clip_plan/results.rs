//! What a plan leaves behind, for shaders and for the host.

use wgpu::CommandEncoder;

use super::{ClipPlan, Outcome};
use crate::gpu::read_back::{self, ReadBack, Results};
use crate::{ClipRecord, Error, NormHistory, StepCounts, TensorStats};

impl ClipPlan {
    /// The buffer with the [`ClipRecord`]s, for a shader of yours: it can be bound as storage (as uniform too, where
    /// there is but one), and copied from. [`RECORD_WGSL`](crate::RECORD_WGSL) declares the type. There is one for each
    /// group; or one for each gradient, or each of its [`rows`](crate::Gradient::rows), where each is clipped by itself.
    ///
    /// It holds what the last norm pass found, and before the first one the coefficient 1 with the flag
    /// `CLIP_RECORD_UNMEASURED`. A few bytes that are none of a record follow on the last one. None for a clip by value,
    /// which measures nothing.
    #[must_use]
    pub fn record_buffer(&self) -> Option<&wgpu::Buffer> {
        self.outcome.as_ref().map(|outcome| &outcome.records.buffer)
    }

    /// Records a copy of the record, taken at this place in the encoder; the ticket gives it to the host once the
    /// encoder has been submitted. Any number of tickets may be under way. Where there are several records, it is the
    /// first.
    ///
    /// Before the first norm pass the ticket fails with [`Error::NothingMeasured`]. A small staging buffer is allocated where
    /// none of an earlier ticket is free.
    pub fn read_back(&self, encoder: &mut CommandEncoder) -> ReadBack {
        match &self.outcome {
            Some(Outcome { is_error: true, records, .. }) => {
                records.read_back(encoder, read_back::first_finite).labelled(&self.labels)
            }
            Some(Outcome { records, .. }) => records.read_back(encoder, read_back::first),
            None => ReadBack::failed(Error::NothingMeasured),
        }
    }

    /// [`read_back`](Self::read_back) of all records: one for each group; or one for each gradient, or each of its rows,
    /// where each is clipped by itself.
    pub fn read_back_all(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<ClipRecord>> {
        match &self.outcome {
            Some(Outcome { is_error: true, records, .. }) => {
                records.read_back(encoder, read_back::all_finite).labelled(&self.labels)
            }
            Some(Outcome { records, .. }) => records.read_back(encoder, read_back::all_records),
            None => ReadBack::failed(Error::NothingMeasured),
        }
    }

    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> usize {
        self.outcome.as_ref().map_or(0, |outcome| outcome.count)
    }

    /// The buffer with the [`TensorStats`] of each gradient, in the order of the list, for a shader of yours: storage, and
    /// to copy from. [`TENSOR_STATS_WGSL`](crate::TENSOR_STATS_WGSL) declares the type. None unless the clip asks for
    /// [`tensor_stats`](crate::Clip::tensor_stats).
    #[must_use]
    pub fn tensor_stats_buffer(&self) -> Option<&wgpu::Buffer> {
        self.outcome.as_ref()?.tensor_stats.as_ref().map(|stats| &stats.buffer)
    }

    /// [`read_back`](Self::read_back) of these. That a gradient is not finite is what they are to tell; it is no error
    /// here. Without [`tensor_stats`](crate::Clip::tensor_stats) the ticket fails with [`Error::NotAskedFor`].
    pub fn read_back_tensor_stats(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<TensorStats>> {
        match self.tensor_stats() {
            Ok(stats) => stats.read_back(encoder, read_back::all_stats),
            Err(error) => ReadBack::failed(error),
        }
    }

    /// [`read_back`](Self::read_back) of what was counted since the plan was made: the counts of each record. Without
    /// [`count_steps`](crate::Clip::count_steps) the ticket fails with [`Error::NotAskedFor`].
    pub fn read_back_step_counts(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<StepCounts>> {
        match self.step_counts() {
            Ok((_, counts)) => counts.read_back(encoder, |bytes| Ok(read_back::all(bytes))),
            Err(error) => ReadBack::failed(error),
        }
    }

    /// [`read_back`](Self::read_back) of the state of a [`z_clip`](crate::Clip::z_clip), for each record: what to save with
    /// a checkpoint. Without one the ticket fails with [`Error::NotAskedFor`].
    pub fn read_back_histories(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<NormHistory>> {
        match self.histories() {
            Ok((_, histories)) => histories.read_back(encoder, |bytes| Ok(read_back::all(bytes))),
            Err(error) => ReadBack::failed(error),
        }
    }

    fn tensor_stats(&self) -> Result<&Results, Error> {
        let stats = self.outcome.as_ref().and_then(|outcome| outcome.tensor_stats.as_ref());
        stats.ok_or(Error::NotAskedFor { what: "statistics of each gradient", with: "tensor_stats" })
    }

    pub(super) fn step_counts(&self) -> Result<(&Outcome, &Results), Error> {
        let error = Error::NotAskedFor { what: "counts over the steps", with: "count_steps" };
        let outcome = self.outcome.as_ref();
        outcome.and_then(|outcome| Some((outcome, outcome.step_counts.as_ref()?))).ok_or(error)
    }

    pub(super) fn histories(&self) -> Result<(&Outcome, &Results), Error> {
        let error = Error::NotAskedFor { what: "histories of norms", with: "z_clip" };
        let outcome = self.outcome.as_ref();
        outcome.and_then(|outcome| Some((outcome, outcome.histories.as_ref()?))).ok_or(error)
    }
}
