// The moments of Adam and their bias correction (Kingma and Ba 2015, arXiv:1412.6980), as in torch.optim.Adam:
//
//   m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g²
//   direction = m / (1 - beta1^t) / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//
// t is the number of steps that were not skipped: a skipped step changes no moment, so it must not count.

alias State = vec2<f32>; // m, v

var<private> correction1: f32; // 1 - beta1^t
var<private> correction2: f32; // 1 - beta2^t

fn begin_step(steps_taken: u32) {
    correction1 = complement_of_power(hyper.complement1, steps_taken);
    correction2 = complement_of_power(hyper.complement2, steps_taken);
}

// Returns 1 - (1 - complement)^exponent. 1 - pow(beta2, t) would have an error of 1e-4 in the first steps. This function squares
// and multiplies powers by 1 - (1 - a)(1 - b) = a + b (1 - a), in which no term is negative.
fn complement_of_power(complement: f32, exponent: u32) -> f32 {
    var result = 0.0;
    var square = complement;
    for (var bits = exponent; bits != 0u; bits >>= 1u) {
        if ((bits & 1u) == 1u) {
            result += square * (1.0 - result);
        }
        square += square * (1.0 - square);
    }
    return result;
}

// Updates the moments, and returns the direction.
fn adam_direction(i: u32, g: f32) -> f32 {
    let m = mix(state[i].x, g, hyper.complement1);
    let v = mix(state[i].y, g * g, hyper.complement2);
    state[i] = vec2(m, v);
    return m / correction1 / (sqrt(v) / sqrt(correction2) + hyper.epsilon);
}
