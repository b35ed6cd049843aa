//! One module for each file of `shaders/stages`, with the same name.

mod agc;
mod auto_clip;
mod clamp;
mod conclude;
mod finalize;
mod finalize_power;
mod partials;
mod partials_power;
mod scale;
mod small_clip;
mod supplied_norm;
mod z_clip;
