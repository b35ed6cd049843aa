//! A shard in main memory, for a rank without a GPU.

use super::sharded_clip::ShardedClip;
use super::share::{Measured, MeasuredTensor, Share, unit, units};
use crate::{ClipRecord, Error, GradientId, cpu};

impl ShardedClip {
    /// Measures a shard in main memory, for a rank without a GPU. Writes nothing. Join the share, then call
    /// [`scale_on_cpu`](Self::scale_on_cpu).
    ///
    /// # Errors
    ///
    /// Those of [`cpu::clip_groups`]; [`Error::ShardedUnits`] if rows or columns have norms of their own. Pass the error to
    /// [`join`](Self::join), so that no rank waits for this one.
    pub fn measure_on_cpu(&self, gradients: &[cpu::Gradient<'_>]) -> Result<Share, Error> {
        if self.whole().is_some() {
            let reason = "the partials of its tiles are those of the kernels";
            return Err(Error::NotSharded { option: "a reproducible norm on the CPU", reason });
        }
        let operations = self.measuring();
        let is_together = self.is_together();
        let with_units = |gradient: &cpu::Gradient<'_>| gradient.units() != 1;
        if let Some(index) = gradients.iter().position(with_units).filter(|_| !is_together) {
            return Err(Error::ShardedUnits { gradient: GradientId::new(index, gradients[index].label) });
        }
        let (measured, stats) = cpu::measure_groups(gradients, &operations)?;
        let gradients: Vec<_> = gradients
            .iter()
            .map(|gradient| unit(gradient.len() as u64, gradient.group, gradient.measured))
            .collect();
        let records = units(&gradients, operations.len(), is_together);
        let records =
            measured.iter().zip(records).map(|(measured, unit)| Measured::of_measurement(measured, unit));
        let tensors = stats.iter().zip(gradients).map(|(stats, unit)| MeasuredTensor::new(stats, unit));
        let (tensors, gradients) = (tensors.enumerate().collect(), stats.len());
        Ok(Share {
            kind: Some(self.kind()),
            records: records.collect(),
            tensors,
            gradients,
            tiles: Vec::new(),
        })
    }

    /// Scales a shard in main memory by the joint records.
    ///
    /// # Errors
    ///
    /// [`Error::ShardCount`] if there is not one record for each group, or for each gradient.
    pub fn scale_on_cpu(
        &self,
        gradients: &mut [cpu::Gradient<'_>],
        records: &[ClipRecord],
    ) -> Result<(), Error> {
        let needed = if self.is_together() { self.measuring().len() } else { gradients.len() };
        if records.len() != needed {
            return Err(Error::ShardCount { what: "records", given: records.len(), needed });
        }
        if !self.is_coefficient_only() {
            cpu::update(gradients, &self.measuring(), records);
        }
        Ok(())
    }
}
