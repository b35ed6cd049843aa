// The mean loss of a step, kept for the end: nothing is read back while the network trains.

@group(0) @binding(0) var<storage, read> losses: array<f32>;
@group(0) @binding(1) var<storage, read_write> mean_loss: array<f32>;

var<workgroup> sh_sums: array<f32, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var place = lane; place < LENGTH * BATCH; place += WORKGROUP_SIZE) {
        sum += losses[place];
    }
    sh_sums[lane] = sum;
    workgroupBarrier();
    if (lane == 0u) {
        for (var other = 1u; other < WORKGROUP_SIZE; other += 1u) {
            sum += sh_sums[other];
        }
        mean_loss[0] = sum / f32(LENGTH * BATCH);
    }
}
