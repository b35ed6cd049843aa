//! The outputs of a plan: buffers for shaders, and tickets for the host.

use wgpu::CommandEncoder;

use super::{ClipPlan, Outcome, TilePartials};
use crate::gpu::read_back::{self, ReadBack, Results};
use crate::loss_scale::LossScale;
use crate::{AutoClip, ClipRecord, Error, NormHistory, NormWindow, StepCounts, TensorStats};

impl ClipPlan {
    /// Returns the buffer with the [`ClipRecord`]s, for a shader to bind as storage (or as uniform if there is only one record), and to
    /// copy from. [`CLIP_RECORD_WGSL`](crate::CLIP_RECORD_WGSL) declares the type. There is one record for each group; or, if each gradient
    /// is clipped on its own, one for each gradient or each of its [`rows`](crate::Gradient::rows) or columns.
    ///
    /// A record holds the result of the last norm pass. Before the first one it holds the coefficient 1 and the flag
    /// `CLIP_RECORD_UNMEASURED`, and its norm is NaN. The last record is followed by a few bytes that belong to no record. None for a clip by
    /// value, which measures nothing.
    #[must_use]
    pub fn record_buffer(&self) -> Option<&wgpu::Buffer> {
        self.outcome.as_ref().map(|outcome| &outcome.records.buffer)
    }

    /// Records a copy of the first record at this point of the encoder. The ticket returns it to the host after the encoder was
    /// submitted. Any number of tickets may be in flight.
    ///
    /// Before the first norm pass the ticket returns [`Error::NothingMeasured`]. The call allocates a small staging buffer unless
    /// that of an earlier ticket is free.
    pub fn read_back(&self, encoder: &mut CommandEncoder) -> ReadBack {
        match &self.outcome {
            Some(Outcome { is_error: true, records, .. }) => {
                records.read_back(encoder, read_back::first_finite).labelled(&self.labels)
            }
            Some(Outcome { records, .. }) => {
                records.read_back(encoder, read_back::first).labelled(&self.labels)
            }
            None => ReadBack::failed(Error::NothingMeasured),
        }
    }

    /// [`read_back`](Self::read_back) of all records: one for each group; or, if each gradient is clipped on its own, one for each
    /// gradient or each of its rows or columns.
    pub fn read_back_all(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<ClipRecord>> {
        match &self.outcome {
            Some(Outcome { is_error: true, records, .. }) => {
                records.read_back(encoder, read_back::all_finite).labelled(&self.labels)
            }
            Some(Outcome { records, .. }) => {
                records.read_back(encoder, read_back::all_records).labelled(&self.labels)
            }
            None => ReadBack::failed(Error::NothingMeasured),
        }
    }

    /// Returns the number of records.
    #[must_use]
    pub fn records(&self) -> usize {
        self.outcome.as_ref().map_or(0, |outcome| outcome.count)
    }

    /// Returns the buffer with the [`TensorStats`] of each gradient, in the order of the list, for a shader to bind as storage and to
    /// copy from. [`TENSOR_STATS_WGSL`](crate::stats::TENSOR_STATS_WGSL) declares the type. None unless the clip asks for
    /// [`tensor_stats`](crate::Clip::tensor_stats).
    #[must_use]
    pub fn tensor_stats_buffer(&self) -> Option<&wgpu::Buffer> {
        self.outcome.as_ref()?.tensor_stats.as_ref().map(|stats| &stats.buffer)
    }

    /// [`read_back`](Self::read_back) of the [`TensorStats`] of each gradient. A non-finite gradient is no error here, whatever the
    /// policy. Without [`tensor_stats`](crate::Clip::tensor_stats) the ticket returns [`Error::NotEnabled`].
    pub fn read_back_tensor_stats(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<TensorStats>> {
        match self.tensor_stats() {
            Ok(stats) => stats.read_back(encoder, read_back::all_stats),
            Err(error) => ReadBack::failed(error),
        }
    }

    /// Returns the buffer with the [`StepCounts`] of each record, for an optimizer's shader to bind as storage and to copy from.
    /// [`STEP_COUNTS_WGSL`](crate::stats::STEP_COUNTS_WGSL) declares the type. None unless the clip
    /// [counts steps](crate::Clip::count_steps), [skips them](crate::Clip::skip_above) or has a
    /// [dynamic loss scale](crate::Clip::dynamic_loss_scale).
    #[must_use]
    pub fn step_counts_buffer(&self) -> Option<&wgpu::Buffer> {
        self.outcome.as_ref()?.step_counts.as_ref().map(|counts| &counts.buffer)
    }

    /// Returns the buffer whose first 24 bytes are the state of the [dynamic loss scale](crate::Clip::dynamic_loss_scale), for the
    /// shader of the loss to bind as storage or uniform, and to copy from. The first word is the scale.
    /// [`LOSS_SCALE_WGSL`](crate::loss_scale::LOSS_SCALE_WGSL) declares the type. It changes when the record is written. None unless the
    /// clip has such a scale.
    #[must_use]
    pub fn loss_scale_buffer(&self) -> Option<&wgpu::Buffer> {
        self.dynamic_scale().ok().map(|outcome| &outcome.norm_params.buffer)
    }

    /// [`read_back`](Self::read_back) of the [dynamic loss scale](crate::Clip::dynamic_loss_scale), to save with a checkpoint or to log.
    /// Without one the ticket returns [`Error::NotEnabled`].
    pub fn read_back_loss_scale(&self, encoder: &mut CommandEncoder) -> ReadBack<LossScale> {
        match self.dynamic_scale() {
            Ok(outcome) => outcome.norm_params.read_back(encoder, read_back::loss_scale),
            Err(error) => ReadBack::failed(error),
        }
    }

    /// [`read_back`](Self::read_back) of the step counts of each record since the plan was made. The ticket returns
    /// [`Error::NotEnabled`] if there is no [`step_counts_buffer`](Self::step_counts_buffer).
    pub fn read_back_step_counts(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<StepCounts>> {
        match self.step_counts() {
            Ok((_, counts)) => counts.read_back(encoder, |bytes| Ok(read_back::all(bytes))),
            Err(error) => ReadBack::failed(error),
        }
    }

    /// [`read_back`](Self::read_back) of the norm histories of a [`z_clip`](crate::Clip::z_clip), one for each record, to save with a
    /// checkpoint. Without `z_clip` the ticket returns [`Error::NotEnabled`].
    pub fn read_back_histories(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<NormHistory>> {
        match self.histories() {
            Ok((_, histories)) => histories.read_back(encoder, |bytes| Ok(read_back::all(bytes))),
            Err(error) => ReadBack::failed(error),
        }
    }

    /// [`read_back`](Self::read_back) of the last norms of an [`auto_clip`](crate::Clip::auto_clip), one window for each record, to save
    /// with a checkpoint. Without `auto_clip` the ticket returns [`Error::NotEnabled`].
    pub fn read_back_norm_windows(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<NormWindow>> {
        match self.norm_windows() {
            Ok((.., windows)) => windows.read_back(encoder, |bytes| Ok(read_back::all_norm_windows(bytes))),
            Err(error) => ReadBack::failed(error),
        }
    }

    /// Records a copy of the partials of all tiles. The ticket returns all words of all banks; see
    /// [`tile_partials`](Self::tile_partials).
    pub(crate) fn read_back_tile_partials(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<u32>> {
        let partials = self.outcome.as_ref().and_then(|outcome| outcome.tile_partials.as_ref());
        let Some(partials) = partials else { return ReadBack::failed(Error::NothingMeasured) };
        let mut offset = 0;
        for bank in &partials.banks {
            encoder.copy_buffer_to_buffer(bank, 0, &partials.copy.buffer, offset, bank.size());
            offset += bank.size();
        }
        partials.copy.read_back(encoder, |bytes| Ok(read_back::all(bytes)))
    }

    /// Returns the first word of each partial among those that [`read_back_tile_partials`](Self::read_back_tile_partials) returns, in
    /// the order of the gradients and their tiles, given their number.
    pub(crate) fn tile_partials(&self, count: usize) -> Vec<usize> {
        let partials = self.outcome.as_ref().and_then(|outcome| outcome.tile_partials.as_ref());
        let Some(TilePartials { banks, locations, words, .. }) = partials else { return Vec::new() };
        let starts = banks.iter().scan(0, |next, bank| {
            let start = *next;
            *next += usize::try_from(bank.size() / 4).expect("the partials fit into memory");
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

    pub(super) fn dynamic_scale(&self) -> Result<&Outcome, Error> {
        let error = Error::NotEnabled { what: "dynamic loss scale", with: "dynamic_loss_scale" };
        self.outcome.as_ref().filter(|outcome| outcome.has_dynamic_scale).ok_or(error)
    }

    fn tensor_stats(&self) -> Result<&Results, Error> {
        let stats = self.outcome.as_ref().and_then(|outcome| outcome.tensor_stats.as_ref());
        stats.ok_or(Error::NotEnabled { what: "statistics of its gradients", with: "tensor_stats" })
    }

    pub(super) fn step_counts(&self) -> Result<(&Outcome, &Results), Error> {
        let error = Error::NotEnabled { what: "step counts", with: "count_steps" };
        let outcome = self.outcome.as_ref();
        outcome.and_then(|outcome| Some((outcome, outcome.step_counts.as_ref()?))).ok_or(error)
    }

    pub(super) fn histories(&self) -> Result<(&Outcome, &Results), Error> {
        let error = Error::NotEnabled { what: "norm histories", with: "z_clip" };
        let outcome = self.outcome.as_ref();
        outcome.and_then(|outcome| Some((outcome, outcome.histories.as_ref()?))).ok_or(error)
    }

    pub(super) fn norm_windows(&self) -> Result<(&Outcome, AutoClip, &Results), Error> {
        let error = Error::NotEnabled { what: "norm windows", with: "auto_clip" };
        let outcome = self.outcome.as_ref().ok_or(error.clone())?;
        let (auto_clip, windows) = outcome.norm_windows.as_ref().ok_or(error)?;
        Ok((outcome, *auto_clip, windows))
    }
}
