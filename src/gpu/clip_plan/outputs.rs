//! The outputs of a plan: buffers for shaders, and tickets for the host.

use wgpu::CommandEncoder;

use super::{AllocatedBuffer, ClipPlan};
use crate::gpu::read_back::ReadBack;
use crate::loss_scale::LossScale;
use crate::plan::Readout;
use crate::{ClipRecord, Error, NormHistory, NormWindow, StepCounts, TensorStats};

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
        Some(self.buffer(self.plan.record_buffer()?))
    }

    /// Records a copy of the first record at this point of the encoder. The ticket returns it to the host after the encoder was
    /// submitted. Any number of tickets may be in flight.
    ///
    /// Before the first norm pass the ticket returns [`Error::NothingMeasured`]. The call allocates a small staging buffer unless
    /// that of an earlier ticket is free.
    pub fn read_back(&self, encoder: &mut CommandEncoder) -> ReadBack {
        self.ticket(encoder, self.plan.record())
    }

    /// [`read_back`](Self::read_back) of all records: one for each group; or, if each gradient is clipped on its own, one for each
    /// gradient or each of its rows or columns.
    pub fn read_back_all(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<ClipRecord>> {
        self.ticket(encoder, self.plan.all_records())
    }

    /// Returns the number of records.
    #[must_use]
    pub fn records(&self) -> usize {
        self.plan.records()
    }

    /// Returns the buffer with the [`TensorStats`] of each gradient, in the order of the list, for a shader to bind as storage and to
    /// copy from. [`TENSOR_STATS_WGSL`](crate::stats::TENSOR_STATS_WGSL) declares the type. None unless the clip asks for
    /// [`tensor_stats`](crate::Clip::tensor_stats).
    #[must_use]
    pub fn tensor_stats_buffer(&self) -> Option<&wgpu::Buffer> {
        Some(self.buffer(self.plan.tensor_stats().ok()?.buffer()))
    }

    /// [`read_back`](Self::read_back) of the [`TensorStats`] of each gradient. A non-finite gradient is no error here, whatever the
    /// policy. Without [`tensor_stats`](crate::Clip::tensor_stats) the ticket returns [`Error::NotEnabled`].
    pub fn read_back_tensor_stats(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<TensorStats>> {
        self.ticket(encoder, self.plan.tensor_stats())
    }

    /// Returns the buffer with the [`StepCounts`] of each record, for an optimizer's shader to bind as storage and to copy from.
    /// [`STEP_COUNTS_WGSL`](crate::stats::STEP_COUNTS_WGSL) declares the type. None unless the clip
    /// [counts steps](crate::Clip::count_steps), [skips them](crate::Clip::skip_above) or has a
    /// [dynamic loss scale](crate::Clip::dynamic_loss_scale).
    #[must_use]
    pub fn step_counts_buffer(&self) -> Option<&wgpu::Buffer> {
        Some(self.buffer(self.plan.step_counts().ok()?.buffer()))
    }

    /// Returns the buffer whose first 24 bytes are the state of the [dynamic loss scale](crate::Clip::dynamic_loss_scale), for the
    /// shader of the loss to bind as storage or uniform, and to copy from. The first word is the scale.
    /// [`LOSS_SCALE_WGSL`](crate::loss_scale::LOSS_SCALE_WGSL) declares the type. It changes when the record is written. None unless the
    /// clip has such a scale.
    #[must_use]
    pub fn loss_scale_buffer(&self) -> Option<&wgpu::Buffer> {
        Some(self.buffer(self.plan.dynamic_loss_scale().ok()?.buffer()))
    }

    /// [`read_back`](Self::read_back) of the [dynamic loss scale](crate::Clip::dynamic_loss_scale), to save with a checkpoint or to log.
    /// Without one the ticket returns [`Error::NotEnabled`].
    pub fn read_back_loss_scale(&self, encoder: &mut CommandEncoder) -> ReadBack<LossScale> {
        self.ticket(encoder, self.plan.dynamic_loss_scale())
    }

    /// [`read_back`](Self::read_back) of the step counts of each record since the plan was made. The ticket returns
    /// [`Error::NotEnabled`] if there is no [`step_counts_buffer`](Self::step_counts_buffer).
    pub fn read_back_step_counts(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<StepCounts>> {
        self.ticket(encoder, self.plan.step_counts())
    }

    /// [`read_back`](Self::read_back) of the norm histories of a [`z_clip`](crate::Clip::z_clip), one for each record, to save with a
    /// checkpoint. Without `z_clip` the ticket returns [`Error::NotEnabled`].
    pub fn read_back_histories(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<NormHistory>> {
        self.ticket(encoder, self.plan.histories())
    }

    /// [`read_back`](Self::read_back) of the last norms of an [`auto_clip`](crate::Clip::auto_clip), one window for each record, to save
    /// with a checkpoint. Without `auto_clip` the ticket returns [`Error::NotEnabled`].
    pub fn read_back_norm_windows(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<NormWindow>> {
        self.ticket(encoder, self.plan.norm_windows())
    }

    /// Records a copy of the partials of all tiles. The ticket returns all words of all banks; see
    /// [`Plan::places_of_partials`](crate::plan::Plan).
    pub(crate) fn read_back_tile_partials(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<u32>> {
        let Some((readout, banks)) = self.plan.tile_partials() else {
            return ReadBack::failed(Error::NothingMeasured);
        };
        let mut offset = 0;
        for &bank in banks {
            let bank = self.buffer(bank);
            encoder.copy_buffer_to_buffer(bank, 0, self.buffer(readout.buffer()), offset, bank.size());
            offset += bank.size();
        }
        self.ticket(encoder, Ok(readout))
    }

    /// Records a copy of what is read.
    fn ticket<R>(&self, encoder: &mut CommandEncoder, readout: Result<Readout<R>, Error>) -> ReadBack<R> {
        match readout.map(|readout| (&self.buffers[readout.buffer()], readout)) {
            Ok((AllocatedBuffer::Readable(results), readout)) => results.read_back(encoder, readout),
            Ok((AllocatedBuffer::Device(_), _)) => unreachable!("the buffer of a readout is readable"),
            Err(error) => ReadBack::failed(error),
        }
    }
}
