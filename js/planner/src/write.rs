//! Updates of a plan between steps: what the setters of `js/src/plan.ts` write, and where its copies go. The numbers of saved
//! state are in the orders of `results.rs`.

use gradclip::Error;
use gradclip::plan::{Place, Write as Written};
use gradclip::stats::{NormHistory, NormWindow, StepCounts};
use wasm_bindgen::prelude::wasm_bindgen;

use crate::Plan;
use crate::clip::loss_scale;
use crate::error::Failure;

/// Bytes for a buffer of the plan; none for a place that the host copies to.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Write {
    place: Place,
    bytes: Vec<u8>,
}

#[wasm_bindgen]
impl Write {
    #[wasm_bindgen(getter)]
    pub fn buffer(&self) -> usize {
        self.place.buffer
    }

    #[wasm_bindgen(getter)]
    pub fn offset(&self) -> f64 {
        self.place.offset as f64
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }
}

impl From<Written> for Write {
    fn from(Written { place, bytes }: Written) -> Self {
        Self { place, bytes }
    }
}

impl From<Place> for Write {
    fn from(place: Place) -> Self {
        Self { place, bytes: Vec::new() }
    }
}

type Writes = Result<Vec<Write>, Failure>;

fn one(written: Result<impl Into<Write>, Error>) -> Writes {
    Ok(vec![written?.into()])
}

#[wasm_bindgen]
impl Plan {
    #[wasm_bindgen(js_name = setMaxNorms)]
    pub fn set_max_norms(&self, max_norms: &[f32]) -> Writes {
        one(self.plan.set_max_norms(max_norms))
    }

    #[wasm_bindgen(js_name = setLossScale)]
    pub fn set_loss_scale(&self, scale: f32) -> Writes {
        Ok(self.plan.set_loss_scale(scale)?.into_iter().map(Write::from).collect())
    }

    #[wasm_bindgen(js_name = setDynamicLossScale)]
    pub fn set_dynamic_loss_scale(&self, state: &[f64]) -> Writes {
        one(self.plan.set_dynamic_loss_scale(loss_scale(state)?))
    }

    #[wasm_bindgen(js_name = supplyNorm)]
    pub fn supply_norm(&self, norm: f32) -> Writes {
        one(self.plan.supply_norm(norm))
    }

    #[wasm_bindgen(js_name = setStepCounts)]
    pub fn set_step_counts(&self, numbers: &[f64]) -> Writes {
        let counts = numbers.chunks_exact(6).map(|of| StepCounts {
            steps: of[0] as u32,
            clipped: of[1] as u32,
            non_finite: of[2] as u32,
            skipped: of[3] as u32,
            consecutive_skips: of[4] as u32,
            largest_norm: of[5] as f32,
        });
        one(self.plan.set_step_counts(&counts.collect::<Vec<_>>()))
    }

    #[wasm_bindgen(js_name = setHistories)]
    pub fn set_histories(&self, numbers: &[f64]) -> Writes {
        let histories = numbers.chunks_exact(3).map(|of| NormHistory {
            steps: of[0] as u32,
            mean: of[1] as f32,
            deviation: of[2] as f32,
        });
        one(self.plan.set_histories(&histories.collect::<Vec<_>>()))
    }

    #[wasm_bindgen(js_name = setNormWindows)]
    pub fn set_norm_windows(&self, mut numbers: &[f64]) -> Writes {
        let mut windows = Vec::new();
        while let [len, rest @ ..] = numbers {
            let (norms, others) = rest.split_at(*len as usize);
            windows.push(NormWindow { norms: norms.iter().map(|&norm| norm as f32).collect() });
            numbers = others;
        }
        one(self.plan.set_norm_windows(&windows))
    }

    /// Returns where the limit of a group is.
    #[wasm_bindgen(js_name = maxNorm)]
    pub fn max_norm(&self, group: usize) -> Writes {
        one(self.plan.max_norm(group))
    }

    /// Returns where the supplied norm is.
    #[wasm_bindgen(js_name = suppliedNorm)]
    pub fn supplied_norm(&self) -> Writes {
        one(self.plan.supplied_norm())
    }

    /// Returns where the inverse of the loss scale is.
    #[wasm_bindgen(js_name = inverseLossScale)]
    pub fn inverse_loss_scale(&self) -> Writes {
        let places = self.plan.inverse_loss_scales("copy_inverse_loss_scale")?;
        Ok(places.into_iter().map(Write::from).collect())
    }
}
