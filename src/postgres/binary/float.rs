//! Floating-point numbers: the fewest digits that give the number back, as the server writes them.
//!
//! Rust finds the same digits, except where something is exactly half-way: between two numbers the server takes more
//! digits rather than rely on how a reader rounds, and between two last digits it takes the even one. Both are rare, and
//! told here by `None`.

/// Where the number lies, and its place among its neighbours.
struct Parts {
    mantissa: u64,
    exponent: i32,
    /// Whether the next smaller number is nearer than the next larger.
    is_power_of_two: bool,
}

pub(super) fn double(out: &mut Vec<u8>, number: f64) -> Option<()> {
    let bits = number.to_bits();
    let (biased, fraction) = ((bits >> 52 & 0x7FF) as i32, bits & ((1 << 52) - 1));
    let parts = Parts {
        mantissa: if biased == 0 { fraction } else { fraction | 1 << 52 },
        exponent: biased.max(1) - 1075,
        is_power_of_two: fraction == 0 && biased > 1,
    };
    write(out, number, &format!("{:e}", number.abs()), &parts, 15)
}

pub(super) fn single(out: &mut Vec<u8>, number: f32) -> Option<()> {
    let bits = number.to_bits();
    let (biased, fraction) = ((bits >> 23 & 0xFF) as i32, bits & ((1 << 23) - 1));
    let parts = Parts {
        mantissa: u64::from(if biased == 0 { fraction } else { fraction | 1 << 23 }),
        exponent: biased.max(1) - 150,
        is_power_of_two: fraction == 0 && biased > 1,
    };
    write(out, f64::from(number), &format!("{:e}", number.abs()), &parts, 6)
}

/// Appends a number whose shortest digits are `shortest`; as a decimal where the exponent is below `scientific_from`.
fn write(out: &mut Vec<u8>, number: f64, shortest: &str, parts: &Parts, scientific_from: i32) -> Option<()> {
    if number.is_nan() {
        out.extend_from_slice(b"NaN");
        return Some(());
    }
    if number.is_sign_negative() {
        out.push(b'-');
    }
    if number.is_infinite() {
        out.extend_from_slice(b"Infinity");
        return Some(());
    }
    let (digits, exponent) = shortest.split_once('e')?;
    let digits = digits.replace('.', "");
    let exponent: i32 = exponent.parse().ok()?;
    if is_half_way(digits.parse().ok()?, exponent - (digits.len() as i32 - 1), parts) {
        return None;
    }
    if (-4..0).contains(&exponent) {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', exponent.unsigned_abs() as usize - 1));
        out.extend_from_slice(digits.as_bytes());
    } else if (0..scientific_from).contains(&exponent) {
        let whole = exponent as usize + 1;
        let (before, after) = digits.split_at(whole.min(digits.len()));
        out.extend_from_slice(before.as_bytes());
        out.extend(std::iter::repeat_n(b'0', whole - before.len()));
        if !after.is_empty() {
            out.push(b'.');
            out.extend_from_slice(after.as_bytes());
        }
    } else {
        let (first, more) = digits.split_at_checked(1)?;
        let point = if more.is_empty() { "" } else { "." };
        let sign = if exponent < 0 { '-' } else { '+' };
        let text = format!("{first}{point}{more}e{sign}{:02}", exponent.unsigned_abs());
        out.extend_from_slice(text.as_bytes());
    }
    Some(())
}

/// Whether `digits` × 10^`power` is exactly half-way to a neighbour of the number, or the number exactly half-way to
/// other digits.
fn is_half_way(digits: u64, power: i32, number: &Parts) -> bool {
    let Parts { mantissa, exponent, is_power_of_two } = *number;
    if mantissa == 0 {
        return false;
    }
    let below = match is_power_of_two {
        true => (4 * mantissa - 1, exponent - 2),
        false => (2 * mantissa - 1, exponent - 1),
    };
    [(2 * mantissa + 1, exponent - 1), below]
        .into_iter()
        .any(|(odd, exponent)| are_equal((digits, power), (odd, exponent)))
        || [2 * digits - 1, 2 * digits + 1]
            .into_iter()
            .any(|twice| are_equal((twice, power), (mantissa, exponent + 1)))
}

/// Whether a number with a power of ten is one with a power of two. Neither is 0.
fn are_equal((decimal, power): (u64, i32), (binary, exponent): (u64, i32)) -> bool {
    let odd = |number: u64| Some(u128::from(number >> number.trailing_zeros()));
    let with_fives = |number: u64| odd(number)?.checked_mul(5u128.checked_pow(power.unsigned_abs())?);
    let (ours, theirs) = match power {
        0.. => (with_fives(decimal), odd(binary)),
        _ => (odd(decimal), with_fives(binary)),
    };
    let twos = decimal.trailing_zeros() as i32 + power == binary.trailing_zeros() as i32 + exponent;
    twos && ours.is_some() && ours == theirs
}
