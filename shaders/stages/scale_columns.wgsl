// Scale of gradients whose columns have their own norms: multiplies every element by the factor of the record of its column.
//
// A factor of 1 leaves an element as it is, to the bit.
//
// provides: map_element
// requires: workgroup, column_maps, elements, clip_record, ieee_product, float_bits, extended
// binds: records
// constants: WORKGROUP_SIZE

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    map_column_tile(workgroup_index(workgroup, grid), lane);
}

// Returns the new bits of the even (0) or odd (1) element of a word, in the lower bits.
fn map_element(word: u32, parity: u32, record_number: u32) -> u32 {
    if (bitcast<u32>(records[record_number].factor) == ONE) {
        return select((word >> (16u * parity)) & 0xffffu, word, ELEMENTS_PER_WORD == 1u);
    }
    return narrow(vec4(product(widen_element(word, parity), record_number))).x;
}

// Multiplies the bits of an f32 by a factor; see scale.wgsl.
fn product(bits: u32, record_number: u32) -> u32 {
    let record = &records[record_number];
    let is_in_range = u32((*record).factor_exponent + 126) < 254u;
    if (((*record).flags & CLIP_RECORD_NON_FINITE) == 0u && is_in_range) {
        return bitcast<u32>(bitcast<f32>(bits) * (*record).factor);
    }
    if (((*record).flags & CLIP_RECORD_ZERO) != 0u) {
        return 0u;
    }
    return ieee_product(vec4(bits), Extended(bitcast<u32>((*record).factor_significand), (*record).factor_exponent)).x;
}
