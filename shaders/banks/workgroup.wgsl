// The partials of a small clip, in workgroup memory.
//
// provides: sh_tile_partials, partial_at, reset_partials
// requires: partials, segment
// constants: SMALL_CLIP_TILES

var<workgroup> sh_tile_partials: array<Partial, SMALL_CLIP_TILES>;

fn partial_at(index: u32) -> Partial {
    return sh_tile_partials[index];
}

// Nothing is left for the next launch.
fn reset_partials(segment: Segment, lane: u32) {}
