//! The state that a clipper keeps between steps: norm histories, norm windows and step counts, one per record, and a
//! loss scale.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor};
#[cfg(feature = "wgpu")]
use bytemuck::pod_collect_to_vec;
#[cfg(feature = "wgpu")]
use gradclip::AutoClip;
#[cfg(feature = "wgpu")]
use gradclip::kernels::tables::{norm_window_words, norm_windows_of};
use gradclip::operation::ByNorm;
use gradclip::stats::{NormHistory, NormWindow, StepCounts};

use crate::Error;
#[cfg(feature = "wgpu")]
use crate::loss_scale::ScaleParams;
use crate::loss_scale::{ScaleTensors, StoredScale};
use crate::transfer::{counts, floats, read_counts, read_floats};
#[cfg(feature = "wgpu")]
use crate::transfer::{read_words, upload_words};

/// The state of a clipper.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) histories: Stored<HistoryTensors>,
    pub(crate) norm_windows: Stored<WindowTensors>,
    pub(crate) step_counts: Stored<CountTensors>,
    pub(crate) loss_scale: StoredScale,
    /// The paths of the gradients of the last clip, if each record belongs to a gradient. `None` if records belong to
    /// groups, or before the first clip with this state.
    pub(crate) parameters: Option<Arc<[String]>>,
}

/// The state of one step, as words for the kernels.
#[cfg(feature = "wgpu")]
#[derive(Debug, Default)]
pub(crate) struct StateWords {
    /// The norm histories of a z-clip.
    pub(crate) histories: Option<Tensor<1, Int>>,
    /// The norm windows of an auto-clip.
    pub(crate) norm_windows: Option<Tensor<1, Int>>,
    /// The step counts, if the clip counts steps.
    pub(crate) step_counts: Option<Tensor<1, Int>>,
    /// The dynamic loss scale.
    pub(crate) scale_params: Option<ScaleParams>,
    /// After a clip, the scale in `scale_params`, as an f32 in the same memory.
    pub(crate) loss_scale: Option<Tensor<1>>,
}

/// The state of one step, as tensors for tensor operations.
#[derive(Debug, Default)]
pub(crate) struct TensorState {
    /// The norm histories of a z-clip.
    pub(crate) histories: Option<HistoryTensors>,
    /// The norm windows of an auto-clip.
    pub(crate) norm_windows: Option<WindowTensors>,
    /// The step counts, if the clip counts steps.
    pub(crate) step_counts: Option<CountTensors>,
    /// The dynamic loss scale.
    pub(crate) loss_scale: Option<ScaleTensors>,
}

impl State {
    /// Checks that the state that `norm` needs has one value per record, or none yet.
    pub(crate) fn check_counts(&self, norm: &ByNorm, records: usize) -> Result<(), Error> {
        if norm.z_clip.is_some() {
            self.histories.check_count("norm histories", records)?;
        }
        if norm.auto_clip.is_some() {
            self.norm_windows.check_count("norm windows", records)?;
        }
        if norm.keeps_step_counts() {
            self.step_counts.check_count("step counts", records)?;
        }
        Ok(())
    }

    /// Takes the state that `norm` needs as words on a device. Waits for the device only if the state is in another
    /// form.
    #[cfg(feature = "wgpu")]
    pub(crate) fn take_words(
        &mut self,
        norm: &ByNorm,
        records: usize,
        device: &Device,
    ) -> Result<StateWords, Error> {
        let mut words = StateWords::default();
        if norm.z_clip.is_some() {
            words.histories = Some(self.histories.take_words(records, (), device)?);
        }
        if let Some(AutoClip { window, .. }) = norm.auto_clip {
            words.norm_windows = Some(self.norm_windows.take_words(records, window, device)?);
        }
        if norm.keeps_step_counts() {
            words.step_counts = Some(self.step_counts.take_words(records, (), device)?);
        }
        if let Some(initial) = norm.dynamic_loss_scale {
            words.scale_params = Some(self.loss_scale.take_params(initial, norm, device)?);
        }
        Ok(words)
    }

    /// Takes the state that `norm` needs as tensors on a device. Waits for the device only if the state is in another
    /// form.
    pub(crate) fn take_tensors(
        &mut self,
        norm: &ByNorm,
        records: usize,
        device: &Device,
    ) -> Result<TensorState, Error> {
        let mut tensors = TensorState::default();
        if norm.z_clip.is_some() {
            tensors.histories = Some(self.histories.take_tensors(records, (), device)?);
        }
        if let Some(auto_clip) = norm.auto_clip {
            tensors.norm_windows = Some(self.norm_windows.take_tensors(records, auto_clip.window, device)?);
        }
        if norm.keeps_step_counts() {
            tensors.step_counts = Some(self.step_counts.take_tensors(records, (), device)?);
        }
        if let Some(initial) = norm.dynamic_loss_scale {
            tensors.loss_scale = Some(self.loss_scale.take_tensors(initial, device)?);
        }
        Ok(tensors)
    }

    /// Stores the state after a clip by the kernels.
    #[cfg(feature = "wgpu")]
    pub(crate) fn store_words(&mut self, norm: &ByNorm, words: StateWords) {
        if let Some(words) = words.histories {
            self.histories = Stored::Words(Box::new(words), ());
        }
        if let (Some(words), Some(auto_clip)) = (words.norm_windows, norm.auto_clip) {
            self.norm_windows = Stored::Words(Box::new(words), auto_clip.window);
        }
        if let Some(words) = words.step_counts {
            self.step_counts = Stored::Words(Box::new(words), ());
        }
        if let Some((params, scale)) = words.scale_params.zip(words.loss_scale) {
            self.loss_scale = StoredScale::Words { params: Box::new(params), scale: Box::new(scale) };
        }
    }

    /// Stores the state after a clip by tensor operations.
    pub(crate) fn store_tensors(&mut self, tensors: TensorState) {
        if let Some(histories) = tensors.histories {
            self.histories = Stored::Tensors(Box::new(histories));
        }
        if let Some(windows) = tensors.norm_windows {
            self.norm_windows = Stored::Tensors(Box::new(windows));
        }
        if let Some(counts) = tensors.step_counts {
            self.step_counts = Stored::Tensors(Box::new(counts));
        }
        if let Some(scale) = tensors.loss_scale {
            self.loss_scale = StoredScale::Tensors(Box::new(scale));
        }
    }
}

/// Values of one kind, one per record, in the form in which the last clip left them.
#[derive(Clone, Debug)]
pub(crate) enum Stored<T: StateTensors> {
    /// On the host, after they were restored. Empty before the first clip.
    Host(Vec<T::Value>),
    /// On the device as words, after a clip by the kernels.
    #[cfg(feature = "wgpu")]
    Words(Box<Tensor<1, Int>>, T::Length),
    /// On the device as tensors, after a clip by tensor operations.
    Tensors(Box<T>),
}

/// State values as tensors, with one element or row per record.
pub(crate) trait StateTensors: Clone {
    /// The plain value of one record.
    type Value: Clone + Default;

    /// The length of a value, if it varies.
    type Length: Copy + PartialEq;

    fn from_values(values: &[Self::Value], length: Self::Length, device: &Device) -> Self;

    /// Returns the number of records.
    fn records(&self) -> usize;

    fn length(&self) -> Self::Length;

    fn to_device(self, device: &Device) -> Self;

    /// Reads the values back.
    async fn values(&self) -> Result<Vec<Self::Value>, Error>;

    /// Returns the number of words of one value.
    #[cfg(feature = "wgpu")]
    fn value_words(length: Self::Length) -> usize;

    #[cfg(feature = "wgpu")]
    fn to_words(values: &[Self::Value], length: Self::Length) -> Vec<u32>;

    #[cfg(feature = "wgpu")]
    fn from_words(words: &[u32]) -> Vec<Self::Value>;
}

impl<T: StateTensors> Default for Stored<T> {
    fn default() -> Self {
        Self::Host(Vec::new())
    }
}

impl<T: StateTensors> Stored<T> {
    /// Checks that there is one value per record, or none yet. `what` names the values in the error.
    fn check_count(&self, what: &'static str, records: usize) -> Result<(), Error> {
        let given = match self {
            Self::Host(values) => values.len(),
            #[cfg(feature = "wgpu")]
            Self::Words(words, length) => words.dims()[0] / T::value_words(*length),
            Self::Tensors(tensors) => tensors.records(),
        };
        if given == 0 || given == records {
            return Ok(());
        }
        Err(gradclip::Error::StateCount { what, given, records }.into())
    }

    /// Reads the values back. Empty before the first clip.
    pub(crate) async fn read(&self) -> Result<Vec<T::Value>, Error> {
        match self {
            Self::Host(values) => Ok(values.clone()),
            #[cfg(feature = "wgpu")]
            Self::Words(words, _) => Ok(T::from_words(&read_words(words).await?)),
            Self::Tensors(tensors) => tensors.values().await,
        }
    }

    /// Takes the values as tensors on a device. Waits for the device only if kernels made the last clip, or if the
    /// length has changed.
    fn take_tensors(&mut self, records: usize, length: T::Length, device: &Device) -> Result<T, Error> {
        match std::mem::take(self) {
            Self::Tensors(tensors) if tensors.length() == length => return Ok(tensors.to_device(device)),
            stored => *self = stored,
        }
        let values = self.take_values(records)?;
        Ok(T::from_values(&values, length, device))
    }

    /// Takes the values as words on a device. Waits for the device only if tensor operations made the last clip, or if
    /// the length has changed.
    #[cfg(feature = "wgpu")]
    fn take_words(
        &mut self,
        records: usize,
        length: T::Length,
        device: &Device,
    ) -> Result<Tensor<1, Int>, Error> {
        match std::mem::take(self) {
            Self::Words(words, of_words) if of_words == length => return Ok(words.to_device(device)),
            stored => *self = stored,
        }
        let values = self.take_values(records)?;
        Ok(upload_words(T::to_words(&values, length), device))
    }

    /// Takes the values, one per record. On error, they stay.
    fn take_values(&mut self, records: usize) -> Result<Vec<T::Value>, Error> {
        let mut values = pollster::block_on(self.read())?;
        values.resize(records, T::Value::default());
        *self = Self::default();
        Ok(values)
    }
}

/// The fields of [`NormHistory`].
#[derive(Clone, Debug)]
pub(crate) struct HistoryTensors {
    pub(crate) steps: Tensor<1, Int>,
    pub(crate) means: Tensor<1>,
    pub(crate) deviations: Tensor<1>,
}

impl StateTensors for HistoryTensors {
    type Value = NormHistory;
    type Length = ();

    fn from_values(values: &[NormHistory], (): (), device: &Device) -> Self {
        Self {
            steps: counts(values.iter().map(|history| history.steps), device),
            means: floats(values.iter().map(|history| history.mean), device),
            deviations: floats(values.iter().map(|history| history.deviation), device),
        }
    }

    fn records(&self) -> usize {
        self.means.dims()[0]
    }

    fn length(&self) {}

    fn to_device(self, device: &Device) -> Self {
        let Self { steps, means, deviations } = self;
        Self {
            steps: steps.to_device(device),
            means: means.to_device(device),
            deviations: deviations.to_device(device),
        }
    }

    async fn values(&self) -> Result<Vec<NormHistory>, Error> {
        let steps = read_counts(&self.steps).await?;
        let numbers = read_floats(&Tensor::cat(vec![self.means.clone(), self.deviations.clone()], 0)).await?;
        let (means, deviations) = numbers.split_at(steps.len());
        let fields = steps.into_iter().zip(means).zip(deviations);
        Ok(fields.map(|((steps, &mean), &deviation)| NormHistory { steps, mean, deviation }).collect())
    }

    #[cfg(feature = "wgpu")]
    fn value_words((): ()) -> usize {
        size_of::<Self::Value>() / 4
    }

    #[cfg(feature = "wgpu")]
    fn to_words(values: &[Self::Value], (): ()) -> Vec<u32> {
        pod_collect_to_vec(values)
    }

    #[cfg(feature = "wgpu")]
    fn from_words(words: &[u32]) -> Vec<Self::Value> {
        pod_collect_to_vec(words)
    }
}

/// Norm windows. Empty places hold infinity.
#[derive(Clone, Debug)]
pub(crate) struct WindowTensors {
    /// The number of norms of each record.
    pub(crate) counts: Tensor<1, Int>,
    /// The norms of each record, one row each: the latest norm is last.
    pub(crate) latest: Tensor<2>,
    /// The same norms in increasing order.
    pub(crate) sorted: Tensor<2>,
}

/// Returns the latest norms of a window, at most `length`.
fn latest(window: &NormWindow, length: u32) -> &[f32] {
    let surplus = window.norms.len().saturating_sub(length as usize);
    &window.norms[surplus..]
}

impl StateTensors for WindowTensors {
    type Value = NormWindow;
    type Length = u32;

    fn from_values(values: &[NormWindow], length: u32, device: &Device) -> Self {
        let (records, columns) = (values.len(), length as usize);
        let mut by_time = Vec::with_capacity(records * columns);
        let mut sorted = Vec::with_capacity(records * columns);
        for window in values {
            let norms = latest(window, length);
            by_time.extend(std::iter::repeat_n(f32::INFINITY, columns - norms.len()));
            by_time.extend(norms);
            let first = sorted.len();
            sorted.extend(norms);
            sorted[first..].sort_unstable_by(f32::total_cmp);
            sorted.resize(first + columns, f32::INFINITY);
        }
        let matrix = |norms: Vec<f32>| floats(norms.into_iter(), device).reshape([records, columns]);
        let count = |window| u32::try_from(latest(window, length).len()).unwrap_or(length);
        Self {
            counts: counts(values.iter().map(count), device),
            latest: matrix(by_time),
            sorted: matrix(sorted),
        }
    }

    fn records(&self) -> usize {
        self.latest.dims()[0]
    }

    fn length(&self) -> u32 {
        u32::try_from(self.latest.dims()[1]).unwrap_or(u32::MAX)
    }

    fn to_device(self, device: &Device) -> Self {
        let Self { counts, latest, sorted } = self;
        Self {
            counts: counts.to_device(device),
            latest: latest.to_device(device),
            sorted: sorted.to_device(device),
        }
    }

    async fn values(&self) -> Result<Vec<NormWindow>, Error> {
        let [records, columns] = self.latest.dims();
        let counts = read_counts(&self.counts).await?;
        let norms = read_floats(&self.latest.clone().reshape([records * columns])).await?;
        let windows = norms.chunks_exact(columns).zip(counts);
        Ok(windows
            .map(|(norms, count)| NormWindow { norms: norms[columns - count as usize..].to_vec() })
            .collect())
    }

    #[cfg(feature = "wgpu")]
    fn value_words(length: u32) -> usize {
        norm_window_words(AutoClip { window: length, ..AutoClip::default() }, &[NormWindow::default()]).len()
    }

    #[cfg(feature = "wgpu")]
    fn to_words(values: &[NormWindow], length: u32) -> Vec<u32> {
        let windows: Vec<_> =
            values.iter().map(|window| NormWindow { norms: latest(window, length).to_vec() }).collect();
        norm_window_words(AutoClip { window: length, ..AutoClip::default() }, &windows)
    }

    #[cfg(feature = "wgpu")]
    fn from_words(words: &[u32]) -> Vec<NormWindow> {
        norm_windows_of(words)
    }
}

/// The fields of [`StepCounts`].
#[derive(Clone, Debug)]
pub(crate) struct CountTensors {
    pub(crate) steps: Tensor<1, Int>,
    pub(crate) clipped: Tensor<1, Int>,
    pub(crate) non_finite: Tensor<1, Int>,
    pub(crate) skipped: Tensor<1, Int>,
    pub(crate) consecutive_skips: Tensor<1, Int>,
    pub(crate) largest_norms: Tensor<1>,
}

impl StateTensors for CountTensors {
    type Value = StepCounts;
    type Length = ();

    fn from_values(values: &[StepCounts], (): (), device: &Device) -> Self {
        Self {
            steps: counts(values.iter().map(|counts| counts.steps), device),
            clipped: counts(values.iter().map(|counts| counts.clipped), device),
            non_finite: counts(values.iter().map(|counts| counts.non_finite), device),
            skipped: counts(values.iter().map(|counts| counts.skipped), device),
            consecutive_skips: counts(values.iter().map(|counts| counts.consecutive_skips), device),
            largest_norms: floats(values.iter().map(|counts| counts.largest_norm), device),
        }
    }

    fn records(&self) -> usize {
        self.largest_norms.dims()[0]
    }

    fn length(&self) {}

    fn to_device(self, device: &Device) -> Self {
        let Self { steps, clipped, non_finite, skipped, consecutive_skips, largest_norms } = self;
        Self {
            steps: steps.to_device(device),
            clipped: clipped.to_device(device),
            non_finite: non_finite.to_device(device),
            skipped: skipped.to_device(device),
            consecutive_skips: consecutive_skips.to_device(device),
            largest_norms: largest_norms.to_device(device),
        }
    }

    async fn values(&self) -> Result<Vec<StepCounts>, Error> {
        let largest_norms = read_floats(&self.largest_norms).await?;
        let Self { steps, clipped, non_finite, skipped, consecutive_skips, .. } = self;
        let all = [steps, clipped, non_finite, skipped, consecutive_skips].map(Tensor::clone);
        let all = read_counts(&Tensor::cat(all.to_vec(), 0)).await?;
        let records = largest_norms.len();
        let values = largest_norms.into_iter().enumerate().map(|(record, largest_norm)| StepCounts {
            steps: all[record],
            clipped: all[records + record],
            non_finite: all[2 * records + record],
            skipped: all[3 * records + record],
            consecutive_skips: all[4 * records + record],
            largest_norm,
        });
        Ok(values.collect())
    }

    #[cfg(feature = "wgpu")]
    fn value_words((): ()) -> usize {
        size_of::<Self::Value>() / 4
    }

    #[cfg(feature = "wgpu")]
    fn to_words(values: &[Self::Value], (): ()) -> Vec<u32> {
        pod_collect_to_vec(values)
    }

    #[cfg(feature = "wgpu")]
    fn from_words(words: &[u32]) -> Vec<Self::Value> {
        pod_collect_to_vec(words)
    }
}
