// Products by integers, for factors that the device's multiplication may not handle.
//
// provides: ieee_product
// requires: float_bits, extended

// Returns the IEEE 754 products, also on a device that ignores NaNs and infinities or flushes a subnormal factor.
fn ieee_product(bits: vec4<u32>, factor: Extended) -> vec4<u32> {
    let not_finite = (bits & vec4(INFINITY)) == vec4(INFINITY);
    let is_zero = (factor.significand & MAGNITUDE) == 0u;
    let is_nan = (factor.significand & MAGNITUDE) > INFINITY;
    let finite = vec4(
        nearest_f32(extended_product(extended(bits.x), factor)),
        nearest_f32(extended_product(extended(bits.y), factor)),
        nearest_f32(extended_product(extended(bits.z), factor)),
        nearest_f32(extended_product(extended(bits.w), factor)),
    );
    let infinite = select(bits ^ vec4(factor.significand & SIGN), vec4(NAN), vec4(is_zero));
    return select(select(finite, infinite, not_finite), vec4(NAN), vec4(is_nan));
}
