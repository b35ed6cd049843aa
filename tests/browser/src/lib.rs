//! Tests of the crate in a browser. The page in `page/` calls them one after the other, and `run.mjs` reports what they say.

mod clips;
mod page;
mod refusals;
mod sharded;
mod slices;
mod tickets;

use std::fmt::Debug;

use wasm_bindgen::prelude::wasm_bindgen;

/// The outcome of a test. The error says what was found instead.
type Outcome = Result<(), String>;

macro_rules! tests {
    ($($module:ident::$name:ident)*) => {
        /// Returns the names of all tests.
        #[wasm_bindgen]
        #[must_use]
        pub fn names() -> Vec<String> {
            vec![$(concat!(stringify!($module), "::", stringify!($name)).to_owned()),*]
        }

        async fn dispatch(name: &str) -> Outcome {
            $(if name == concat!(stringify!($module), "::", stringify!($name)) {
                return $module::$name().await;
            })*
            Err(format!("there is no test {name:?}"))
        }
    };
}

tests! {
    clips::exact_sums_have_the_bits_of_the_cpu_path
    clips::rounded_sums_are_within_the_precision_of_the_gpu
    clips::groups_and_policies_have_the_bits_of_the_cpu_path
    clips::state_follows_the_cpu_path
    clips::a_rebound_plan_keeps_its_state
    refusals::a_buffer_of_another_device_is_an_error_that_names_the_gradient
    refusals::a_parameter_of_another_device_is_an_error_that_names_the_gradient
    refusals::a_plan_works_after_a_refused_one
    refusals::a_setter_leaves_errors_to_the_handler_of_the_device
    refusals::a_lost_device_is_an_error
    tickets::a_ticket_of_a_dropped_encoder_is_an_error
    tickets::a_refused_submission_never_returns_an_earlier_record
    tickets::a_ticket_of_a_destroyed_device_is_an_error
    tickets::a_queue_returns_each_record_once_and_in_order
    sharded::two_devices_join_one_norm
    sharded::a_reproducible_norm_has_the_bits_of_a_plain_plan
    sharded::a_shard_that_cannot_be_measured_is_an_error
    slices::both_devices_clip_host_slices
    slices::a_software_adapter_is_not_chosen
    slices::the_cpu_path_needs_no_gpu
}

/// Runs a test.
///
/// # Errors
///
/// What the test found.
#[wasm_bindgen]
pub async fn run(name: String) -> Result<(), String> {
    dispatch(&name).await
}

/// Lets the console of the page show why the module stopped.
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|panic| error(&panic.to_string())));
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console)]
    fn error(message: &str);
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(what()) }
}

fn equal<T: PartialEq + Debug>(found: &T, expected: &T, what: impl FnOnce() -> String) -> Outcome {
    check(found == expected, || format!("{}: found {found:?}, expected {expected:?}", what()))
}

/// Turns an error of the library into the failure of a test.
fn failed(error: impl Debug) -> String {
    format!("{error:?}")
}
