//! `ShardPlan`: measures and scales the shard of one device.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;

use wgpu::{CommandEncoder, ComputePass, Queue};

use super::all_reduce::AllReduce;
use super::reproducible::Shard;
use super::sharded_clip::{JoinError, ShardedClip};
use super::share::{Measured, MeasuredTensor, Share, Unit, unit, units};
use super::tile_norm::Partial;
#[cfg(not(target_arch = "wasm32"))]
use crate::gpu::error_scope::at_once;
use crate::stats::TensorStats;
use crate::{ClipPlan, ClipRecord, Clipper, Error, Gradient, GradientId, NormType, ReadBack};

/// The plan of one shard: it measures the gradients of one device, and scales them once the joint record is known.
///
/// [`ShardedClip::prepare`] makes it. One plan does both, and keeps its buffers from step to step, as a [`ClipPlan`] does.
///
/// [`ShardedClip::clip`] runs a step. With several devices in a process, or to overlap the read-back with other work, run its
/// parts: [`measure`](Self::measure), [`ShardedClip::join`], [`scale`](Self::scale).
#[derive(Debug)]
pub struct ShardPlan {
    plan: ClipPlan,
    record_buffer: wgpu::Buffer,
    coefficient_only: bool,
    known: Arc<Known>,
}

/// What a plan knows of its gradients before it measures.
#[derive(Clone, Debug)]
struct Known {
    /// The norm type, and whether there are statistics.
    kind: (NormType, bool),
    /// For each record.
    records: Vec<Unit>,
    /// For each gradient. Empty without statistics.
    tensors: Vec<Unit>,
    /// For each gradient the index in the statistics, and the number of these.
    stats_index: (Vec<usize>, usize),
    /// For each partial: its tile among those of all ranks, and its first word among the words that are read back. Empty unless the
    /// norm is reproducible.
    tiles: Vec<(usize, usize)>,
}

impl Known {
    fn share(&self, records: &[ClipRecord], stats: &[TensorStats], partials: &[u32]) -> Share {
        let partial = |&(tile, at): &(usize, usize)| {
            // In memory `largest` is inverted.
            (tile, Partial { sum: f32::from_bits(partials[at]), largest: !partials[at + 1] })
        };
        let records = records.iter().zip(&self.records);
        let (index, gradients) = &self.stats_index;
        let tensors = index.iter().zip(stats.iter().zip(&self.tensors));
        let tensor = |(&index, (stats, &unit)): (&usize, (_, _))| (index, MeasuredTensor::new(stats, unit));
        Share {
            kind: Some(self.kind),
            records: records.map(|(record, &unit)| Measured::of_record(record, unit)).collect(),
            tensors: tensors.map(tensor).collect(),
            gradients: *gradients,
            tiles: self.tiles.iter().map(partial).collect(),
        }
    }
}

/// Plans on GPUs, and shards in main memory.
impl ShardedClip {
    /// Prepares the plan of a shard. The gradients are those of this device: whole gradients, parts of some, or none.
    ///
    /// A gradient that several ranks hold a copy of must count once: it is [`unmeasured`](Gradient::unmeasured) on all ranks but one, and
    /// scaled on all. [Parts](Gradient::part) and [partials](Gradient::partials) work as in a [`ClipPlan`].
    ///
    /// # Errors
    ///
    /// Those of [`Clipper::prepare_groups`]; [`Error::ShardedUnits`] if rows or columns have norms of their own. Pass the error to
    /// [`join`](Self::join), so that no rank waits for this one.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn prepare(&self, clipper: &Clipper, gradients: &[Gradient<'_>]) -> Result<ShardPlan, Error> {
        at_once(self.prepare_async(clipper, gradients))
    }

    /// `prepare` for a browser; see [`Clipper::prepare_async`].
    ///
    /// # Errors
    ///
    /// Those of [`Clipper::prepare_groups_async`]; [`Error::ShardedUnits`] if rows or columns have norms of their own.
    pub async fn prepare_async(
        &self,
        clipper: &Clipper,
        gradients: &[Gradient<'_>],
    ) -> Result<ShardPlan, Error> {
        if self.whole().is_some() {
            let shards = gradients.iter().enumerate();
            let shards: Vec<_> =
                shards.map(|(whole, gradient)| Shard::new(gradient.clone(), whole, 0)).collect();
            return self.prepare_shards_async(clipper, &shards).await;
        }
        let plan = clipper.prepare_operations(gradients, &self.measuring()).await?;
        let count = gradients.len();
        self.shard_plan(plan, Vec::new(), ((0..count).collect(), count))
    }

    /// [`prepare`](Self::prepare) for a [reproducible](Self::reproducible) norm, for which the place of each shard in its whole
    /// gradient must be known. In `prepare` itself, the gradients of such a clip are the whole ones.
    ///
    /// # Errors
    ///
    /// Those of [`prepare`](Self::prepare); [`Error::Shard`] for a shard that does not fit; [`Error::NotSharded`] if the norm is not
    /// reproducible, or a gradient has [parts](Gradient::part) or [partials](Gradient::partials).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn prepare_shards(&self, clipper: &Clipper, shards: &[Shard<'_>]) -> Result<ShardPlan, Error> {
        at_once(self.prepare_shards_async(clipper, shards))
    }

    /// `prepare_shards` for a browser; see [`Clipper::prepare_async`].
    ///
    /// # Errors
    ///
    /// Those of [`prepare_async`](Self::prepare_async); [`Error::Shard`] and [`Error::NotSharded`], as for `prepare_shards`.
    pub async fn prepare_shards_async(
        &self,
        clipper: &Clipper,
        shards: &[Shard<'_>],
    ) -> Result<ShardPlan, Error> {
        let Some(whole) = self.whole() else {
            let reason = "call ShardedClip::reproducible first, or prepare";
            return Err(Error::NotSharded { option: "shards with a place", reason });
        };
        let gradients: Vec<_> = shards.iter().map(|shard| shard.gradient.clone()).collect();
        let plan = clipper.prepare_shard(&gradients, &self.measuring(), whole.total_elements()).await?;
        if plan.plan().passes().resets() {
            let reason = "finalize resets their partials";
            return Err(Error::NotSharded {
                option: "a reproducible norm of parts or of given partials",
                reason,
            });
        }
        let mut tiles = Vec::new();
        for (index, (shard, (len, _, measured))) in shards.iter().zip(plan.plan().spans()).enumerate() {
            let id = || GradientId::new(index, plan.label(index));
            let own = whole.tiles_of(&id, (shard.whole, shard.offset, len))?;
            tiles.extend(own.filter(|_| measured));
        }
        let places = plan.plan().places_of_partials(tiles.len());
        let index = shards.iter().map(|shard| shard.whole).collect();
        let stats_index = (index, whole.elements().len());
        self.shard_plan(plan, tiles.into_iter().zip(places).collect(), stats_index)
    }

    fn shard_plan(
        &self,
        plan: ClipPlan,
        tiles: Vec<(usize, usize)>,
        stats_index: (Vec<usize>, usize),
    ) -> Result<ShardPlan, Error> {
        let operations = self.measuring();
        if let Some(index) = plan.plan().first_with_units().filter(|_| !self.is_together()) {
            return Err(Error::ShardedUnits { gradient: GradientId::new(index, plan.label(index)) });
        }
        let gradients: Vec<_> =
            plan.plan().spans().map(|(elements, group, measured)| unit(elements, group, measured)).collect();
        let records = units(&gradients, operations.len(), self.is_together());
        let (tensors, stats_index) =
            if self.has_tensor_stats() { (gradients, stats_index) } else { Default::default() };
        let Some(record_buffer) = plan.record_buffer().cloned() else {
            unreachable!("a clip by norm has records")
        };
        let known = Arc::new(Known { kind: self.kind(), records, tensors, stats_index, tiles });
        Ok(ShardPlan { plan, record_buffer, coefficient_only: self.is_coefficient_only(), known })
    }

    /// Runs a step for the shard of one plan: measures, joins, and scales. Waits for the GPU once, to read the norm of the shard back.
    ///
    /// # Errors
    ///
    /// Those of [`join`](Self::join). No gradient is changed then. After the collective, those of [`ShardPlan::scale`]: if this device
    /// is lost, for example, this rank alone returns [`Error::DeviceLost`], and all ranks fail in the next step.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn clip<C: AllReduce>(
        &mut self,
        plan: &ShardPlan,
        queue: &Queue,
        all_reduce: &mut C,
    ) -> Result<Vec<ClipRecord>, JoinError<C::Error>> {
        let share = plan.measure(queue).wait();
        let joined = self.join([share], all_reduce);
        self.finish(plan, queue, joined)
    }

    /// [`clip`](Self::clip) without blocking on the GPU. The all-reduce still blocks. Run the future to its end: the other ranks wait
    /// for this one.
    ///
    /// # Errors
    ///
    /// Those of [`clip`](Self::clip).
    pub async fn clip_async<C: AllReduce>(
        &mut self,
        plan: &ShardPlan,
        queue: &Queue,
        all_reduce: &mut C,
    ) -> Result<Vec<ClipRecord>, JoinError<C::Error>> {
        let share = plan.measure(queue).await;
        let joined = self.join([share], all_reduce);
        self.finish(plan, queue, joined)
    }

    fn finish<E>(
        &self,
        plan: &ShardPlan,
        queue: &Queue,
        joined: Result<Vec<ClipRecord>, JoinError<E>>,
    ) -> Result<Vec<ClipRecord>, JoinError<E>> {
        match &joined {
            Ok(records) => plan.scale(queue, records)?,
            // The record tells the shader of the optimizer to skip the step.
            Err(JoinError::Clip(error)) if error.is_non_finite() => {
                plan.write_records(queue, self.records())?;
            }
            Err(_) => {}
        }
        joined
    }
}

impl ShardPlan {
    /// Submits the measurement of the shard. Redeem the ticket, and pass its result to [`ShardedClip::join`], an error too. If wgpu
    /// refuses the submission, for example because a buffer has been destroyed, the ticket returns the error.
    pub fn measure(&self, queue: &Queue) -> ShareReadBack {
        let descriptor = wgpu::CommandEncoderDescriptor { label: Some("gradclip.measure") };
        let mut encoder = self.plan.device().create_command_encoder(&descriptor);
        self.encode_norm(&mut encoder);
        let ticket = self.read_back(&mut encoder);
        let refused = self.plan.submit(queue, encoder).err();
        ShareReadBack { refused, ..ticket }
    }

    /// Writes the joint records, and submits the scale pass. With [`coefficient_only`](crate::Clip::coefficient_only) it only writes the
    /// records, for the shader of the optimizer.
    ///
    /// # Errors
    ///
    /// Those of [`write_records`](Self::write_records); [`Error::BufferRejected`] if wgpu refuses the submission.
    pub fn scale(&self, queue: &Queue, records: &[ClipRecord]) -> Result<(), Error> {
        self.write_records(queue, records)?;
        if !self.coefficient_only {
            let descriptor = wgpu::CommandEncoderDescriptor { label: Some("gradclip.scale") };
            let mut encoder = self.plan.device().create_command_encoder(&descriptor);
            self.encode_scale(&mut encoder);
            self.plan.submit(queue, encoder)?;
        }
        Ok(())
    }

    /// Records the measurement of the shard; see [`ClipPlan::encode_norm`].
    pub fn encode_norm(&self, encoder: &mut CommandEncoder) {
        self.plan.encode_norm(encoder);
    }

    /// [`encode_norm`](Self::encode_norm) in a compute pass that you have begun.
    pub fn encode_norm_in_pass(&self, pass: &mut ComputePass<'_>) {
        self.plan.encode_norm_in_pass(pass);
    }

    /// Records the measurement of one part of the shard; see [`ClipPlan::encode_part`].
    ///
    /// # Errors
    ///
    /// Those of [`ClipPlan::encode_part`].
    pub fn encode_part(&self, encoder: &mut CommandEncoder, part: usize) -> Result<(), Error> {
        self.plan.encode_part(encoder, part)
    }

    /// Records the dispatches that follow the parts; see [`ClipPlan::encode_record`].
    ///
    /// # Errors
    ///
    /// Those of [`ClipPlan::encode_record`].
    pub fn encode_record(&self, encoder: &mut CommandEncoder) -> Result<(), Error> {
        self.plan.encode_record(encoder)
    }

    /// Records a copy of the share at this point of the encoder. The ticket returns it after the encoder was submitted.
    pub fn read_back(&self, encoder: &mut CommandEncoder) -> ShareReadBack {
        let [stats, has_tiles] = [!self.known.tensors.is_empty(), !self.known.tiles.is_empty()];
        ShareReadBack {
            records: self.plan.read_back_all(encoder),
            stats: stats.then(|| self.plan.read_back_tensor_stats(encoder)),
            partials: has_tiles.then(|| self.plan.read_back_tile_partials(encoder)),
            refused: None,
            known: self.known.clone(),
        }
    }

    /// Writes the joint records to [`record_buffer`](Self::record_buffer), for every command buffer that is submitted after this call.
    ///
    /// # Errors
    ///
    /// [`Error::ShardCount`] if their number is not that of the plan; [`Error::ForeignQueue`] as for
    /// [`ClipPlan::set_max_norms`]; [`Error::DeviceLost`].
    pub fn write_records(&self, queue: &Queue, records: &[ClipRecord]) -> Result<(), Error> {
        self.plan.write_records(queue, records)
    }

    /// Records the scale pass by the records that were written last.
    pub fn encode_scale(&self, encoder: &mut CommandEncoder) {
        self.plan.encode_scale(encoder);
    }

    /// [`encode_scale`](Self::encode_scale) in a compute pass that you have begun.
    pub fn encode_scale_in_pass(&self, pass: &mut ComputePass<'_>) {
        self.plan.encode_scale_in_pass(pass);
    }

    /// Returns the buffer of the records, for the shader of an optimizer; see [`ClipPlan::record_buffer`]. From
    /// [`encode_norm`](Self::encode_norm) to [`write_records`](Self::write_records) it holds the records of this shard, which change
    /// nothing.
    #[must_use]
    pub fn record_buffer(&self) -> &wgpu::Buffer {
        &self.record_buffer
    }

    /// Replaces the buffers of gradients that have moved; see [`ClipPlan::rebind`].
    ///
    /// # Errors
    ///
    /// Those of [`ClipPlan::rebind`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn rebind(&mut self, gradients: &[Gradient<'_>]) -> Result<(), Error> {
        at_once(self.rebind_async(gradients))
    }

    /// `rebind` for a browser; see [`ClipPlan::rebind_async`].
    ///
    /// # Errors
    ///
    /// Those of [`ClipPlan::rebind_async`].
    pub async fn rebind_async(&mut self, gradients: &[Gradient<'_>]) -> Result<(), Error> {
        self.plan.rebind_async(gradients).await?;
        // The partials may lie in other banks.
        let places = self.plan.plan().places_of_partials(self.known.tiles.len());
        let tiles = self.known.tiles.iter().zip(places).map(|(&(tile, _), place)| (tile, place)).collect();
        self.known = Arc::new(Known { tiles, ..(*self.known).clone() });
        Ok(())
    }
}

/// A ticket for the [`Share`] of one step, from [`ShardPlan::measure`] or [`ShardPlan::read_back`]. It works like [`ReadBack`].
#[derive(Debug)]
#[must_use = "a ticket does nothing until it is waited for"]
pub struct ShareReadBack {
    records: ReadBack<Vec<ClipRecord>>,
    stats: Option<ReadBack<Vec<TensorStats>>>,
    partials: Option<ReadBack<Vec<u32>>>,
    /// The reason why wgpu refused the submission.
    refused: Option<Error>,
    known: Arc<Known>,
}

impl ShareReadBack {
    /// Returns whether [`wait`](Self::wait) would return at once; see [`ReadBack::is_ready`].
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let is_copied = || {
            self.records.is_ready()
                && self.stats.as_ref().is_none_or(ReadBack::is_ready)
                && self.partials.as_ref().is_none_or(ReadBack::is_ready)
        };
        self.refused.is_some() || is_copied()
    }

    /// Waits for the GPU, and returns the share. Not on wasm32: `.await` the ticket.
    ///
    /// # Errors
    ///
    /// Those of [`ReadBack::wait`]. Pass them to [`ShardedClip::join`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn wait(self) -> Result<Share, Error> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        let records = self.records.wait()?;
        let stats = self.stats.map(ReadBack::wait).transpose()?.unwrap_or_default();
        let partials = self.partials.map(ReadBack::wait).transpose()?.unwrap_or_default();
        Ok(self.known.share(&records, &stats, &partials))
    }
}

/// The `.await` of a ticket. Never blocks. Errors are those of [`ShareReadBack::wait`].
impl IntoFuture for ShareReadBack {
    type Output = Result<Share, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            if let Some(error) = self.refused {
                return Err(error);
            }
            let records = self.records.await?;
            let stats = match self.stats {
                Some(stats) => stats.await?,
                None => Vec::new(),
            };
            let partials = match self.partials {
                Some(partials) => partials.await?,
                None => Vec::new(),
            };
            Ok(self.known.share(&records, &stats, &partials))
        })
    }
}
