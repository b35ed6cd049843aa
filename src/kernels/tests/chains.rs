//! The order of additions and multiplications. WGSL lets a compiler rearrange those of one expression, and Mesa's compiler for OpenGL
//! does.

use std::collections::BTreeSet;

use naga::{BinaryOperator, Expression, Function, Handle, ScalarKind};

use super::*;

/// The functions with a chain whose order decides no bit that gradclip promises.
const HARMLESS: [(&str, Operation, &str); 4] = [
    ("rescale_sum", Operation::Product, "the factors are powers of two, and the comment covers their range"),
    ("limit_for", Operation::Product, "z-clip: a quotient is not the same to the bit on all devices"),
    ("limit_beyond_f32", Operation::Product, "z-clip: as above"),
    ("hypotenuse", Operation::Product, "z-clip: as above"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Sum,
    Product,
}

/// The operation of a binary expression, and its operands.
fn operation(expression: &Expression) -> Option<(Operation, [Handle<Expression>; 2])> {
    let &Expression::Binary { op, left, right } = expression else { return None };
    let operation = match op {
        BinaryOperator::Add | BinaryOperator::Subtract => Operation::Sum,
        BinaryOperator::Multiply | BinaryOperator::Divide => Operation::Product,
        _ => return None,
    };
    Some((operation, [left, right]))
}

/// Returns the expression that computes an operand or a part of it. A value from a variable or from a call is not part of the
/// expression; one that has a name by `let` is.
fn origin(function: &Function, operand: Handle<Expression>) -> &Expression {
    match function.expressions[operand] {
        Expression::Unary { expr: inner, .. }
        | Expression::AccessIndex { base: inner, .. }
        | Expression::Swizzle { vector: inner, .. }
        | Expression::Splat { value: inner, .. } => origin(function, inner),
        _ => &function.expressions[operand],
    }
}

/// Returns the functions with two or more additions, or multiplications, of floats in one expression.
fn chains(module: &naga::Module) -> BTreeSet<(String, Operation)> {
    let info = validate(module);
    let functions = module.functions.iter().map(|(handle, function)| (function, &info[handle]));
    let entries = module.entry_points.iter().enumerate();
    let entries = entries.map(|(index, entry)| (&entry.function, info.get_entry_point(index)));
    let mut found = BTreeSet::new();
    for (function, types) in functions.chain(entries) {
        for (handle, expression) in function.expressions.iter() {
            let Some((outer, operands)) = operation(expression) else { continue };
            let is_float =
                types[handle].ty.inner_with(&module.types).scalar_kind() == Some(ScalarKind::Float);
            let has_inner = operands
                .into_iter()
                .any(|operand| operation(origin(function, operand)).is_some_and(|(inner, _)| inner == outer));
            if is_float && has_inner {
                found.insert((function.name.clone().unwrap_or_default(), outer));
            }
        }
    }
    found
}

/// Mesa balanced a sum of four terms in one expression. The norm of gradients times a power of two was then one unit in the last place
/// off that power times the norm.
#[test]
fn sums_and_products_are_in_statements_of_their_own() {
    let mut found: BTreeSet<_> =
        compilers::most().into_iter().flat_map(|kernel| chains(&parse(kernel, Dialect::WebGpu))).collect();
    for norm_type in [NormType::L1, NormType::L2, NormType::Inf] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let text =
                Producer::new(Clip::by_global_norm(1.0).norm_type(norm_type), dtype).unwrap().wgsl().unwrap();
            let chains = chains(&naga::front::wgsl::parse_str(&text).unwrap());
            let without_prefix =
                |(name, operation): (String, _)| (name.trim_start_matches("gradclip_").to_owned(), operation);
            found.extend(chains.into_iter().map(without_prefix));
        }
    }
    let harmless = HARMLESS.map(|(name, operation, _)| (name.to_owned(), operation));
    assert_eq!(found, BTreeSet::from(harmless));
}

#[test]
fn a_chain_is_found_through_names_and_components_but_not_through_variables_and_integers() {
    let of = |body: &str| {
        let text =
            format!("fn one(v: f32) -> f32 {{ return v; }} fn f(a: vec4<f32>, n: u32) -> f32 {{ {body} }}");
        chains(&naga::front::wgsl::parse_str(&text).unwrap())
    };
    let sum = BTreeSet::from([("f".to_owned(), Operation::Sum)]);
    let product = BTreeSet::from([("f".to_owned(), Operation::Product)]);
    assert_eq!(of("return (a.x + a.y) + a.z;"), sum);
    assert_eq!(of("let b = a - a.yzwx; return b.x + a.x;"), sum);
    assert_eq!(of("return a.x - -(a.y + a.z);"), sum);
    assert_eq!(of("return a.x * (a.y / a.z);"), product);
    assert_eq!(of("return a.x * (a.y + a.z);"), BTreeSet::new());
    assert_eq!(of("var b = a.x + a.y; b += a.z; return b;"), BTreeSet::new());
    assert_eq!(of("return one(a.x + a.y) + a.z;"), BTreeSet::new());
    assert_eq!(of("return f32(n + n + n);"), BTreeSet::new());
}
