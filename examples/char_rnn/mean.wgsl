// The mean loss over all token positions. One workgroup.

@group(0) @binding(0) var<storage, read> losses: array<f32>;
@group(0) @binding(1) var<storage, read_write> mean_loss: array<f32>;

var<workgroup> sh_sums: array<f32, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var position = lane; position < LENGTH * BATCH; position += WORKGROUP_SIZE) {
        sum += losses[position];
    }
    sh_sums[lane] = sum;
    workgroupBarrier();
    if (lane == 0u) {
        for (var i = 1u; i < WORKGROUP_SIZE; i += 1u) {
            sum += sh_sums[i];
        }
        mean_loss[0] = sum / f32(LENGTH * BATCH);
    }
}
