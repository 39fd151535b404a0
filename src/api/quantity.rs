//! Quantities (`100m`, `1.5Gi`, `12e6`): exact decimals to the nano, printed in upstream's canonical form.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const NANO: i128 = 1_000_000_000;

/// Which suffixes a quantity is printed with. It is the one it was written with, where that loses nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `n u m k M G T P E`
    #[default]
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`
    BinarySi,
    /// `e3`, `e6`
    DecimalExponent,
}

/// An amount of a resource. Comparison and arithmetic look at the value alone, not at how it was written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// Why a text is not a quantity; the wording is upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Self = Self { nano: 0, format: Format::DecimalSi };

    /// A whole number of units.
    pub fn from_value(value: i64, format: Format) -> Self {
        Self { nano: i128::from(value) * NANO, format }
    }

    /// A number of thousandths.
    pub fn from_milli(milli: i64) -> Self {
        Self { nano: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// A number of 10⁻⁹ units: CPU time per second as the runtime measures it.
    pub fn from_nano(nano: i128) -> Self {
        Self { nano, format: Format::DecimalSi }
    }

    /// # Errors
    /// With upstream's text when `text` is not a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        text.parse()
    }

    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// Whether the value is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.nano % NANO == 0
    }

    /// Whether the value is a whole number of thousandths.
    pub fn is_whole_milli(&self) -> bool {
        self.nano % (NANO / 1000) == 0
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Units, rounded away from zero, held to the range of `i64`.
    pub fn value(&self) -> i64 {
        saturate(divide_up(self.nano, NANO))
    }

    /// Thousandths, rounded away from zero, held to the range of `i64`.
    pub fn to_milli(&self) -> i64 {
        saturate(divide_up(self.nano, NANO / 1000))
    }

    pub fn to_nano(&self) -> i128 {
        self.nano
    }

    pub fn to_f64(&self) -> f64 {
        self.nano as f64 / NANO as f64
    }

    /// `self` times a whole number, held to the range.
    #[must_use]
    pub fn times(self, factor: i64) -> Self {
        Self { nano: self.nano.saturating_mul(i128::from(factor)), format: self.format }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(QuantityError::Format),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let digits_end = unsigned.bytes().position(|b| !b.is_ascii_digit() && b != b'.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(digits_end);
        if !is_suffix_shaped(suffix) || number.is_empty() {
            return Err(QuantityError::Format);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        if whole.is_empty() && fraction.is_empty() {
            return Err(QuantityError::Numeric);
        }
        let (scale, format) = parse_suffix(suffix).ok_or(QuantityError::Suffix)?;
        let mut nano = magnitude(whole, fraction, scale)?;
        if format == Format::BinarySi {
            nano = nano.min(i128::from(i64::MAX) * NANO);
        }
        let format = if format == Format::BinarySi && nano < NANO && nano > 0 { Format::DecimalSi } else { format };
        Ok(Self { nano: if negative { -nano } else { nano }, format })
    }
}

/// What a suffix multiplies by.
#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

fn is_suffix_shaped(suffix: &str) -> bool {
    let letters = suffix.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let rest = &suffix[letters..];
    rest.strip_prefix(['+', '-']).unwrap_or(rest).bytes().all(|b| b.is_ascii_digit())
}

fn parse_suffix(suffix: &str) -> Option<(Scale, Format)> {
    let ten = |power| Some((Scale::Ten(power), Format::DecimalSi));
    let two = |power| Some((Scale::Two(power), Format::BinarySi));
    match suffix {
        "n" => ten(-9),
        "u" => ten(-6),
        "m" => ten(-3),
        "" => ten(0),
        "k" => ten(3),
        "M" => ten(6),
        "G" => ten(9),
        "T" => ten(12),
        "P" => ten(15),
        "E" => ten(18),
        "Ki" => two(10),
        "Mi" => two(20),
        "Gi" => two(30),
        "Ti" => two(40),
        "Pi" => two(50),
        "Ei" => two(60),
        _ => {
            let power = suffix.strip_prefix(['e', 'E'])?;
            Some((Scale::Ten(power.parse().ok()?), Format::DecimalExponent))
        }
    }
}

/// The absolute value in nanos, rounded up; values past the range of `i128` are refused.
fn magnitude(whole: &str, fraction: &str, scale: Scale) -> Result<i128, QuantityError> {
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    // 38 digits fit an i128. Of a longer fraction only whether anything is there matters: it rounds up.
    let kept = fraction.len().min(36_usize.saturating_sub(whole.len()));
    let lost = kept < fraction.len();
    let digits = format!("0{whole}{}", &fraction[..kept]);
    let unscaled: i128 = digits.parse().map_err(|_| QuantityError::Numeric)?;
    if unscaled == 0 && !lost {
        return Ok(0);
    }
    let places = i32::try_from(kept).map_err(|_| QuantityError::Numeric)?;
    let (unscaled, power) = match scale {
        Scale::Ten(power) => (unscaled, power.saturating_add(9).saturating_sub(places)),
        Scale::Two(power) => {
            let factor = 1_i128 << power;
            (unscaled.checked_mul(factor).ok_or(QuantityError::Numeric)?, 9 - places)
        }
    };
    let nano = match u32::try_from(power) {
        Ok(power) => {
            let factor = 10_i128.checked_pow(power).ok_or(QuantityError::Numeric)?;
            unscaled.checked_mul(factor).ok_or(QuantityError::Numeric)?
        }
        Err(_) => match 10_i128.checked_pow(power.unsigned_abs()) {
            Some(divisor) => divide_up(unscaled, divisor),
            None => 1,
        },
    };
    Ok(if lost { nano.saturating_add(i128::from(nano == 0)) } else { nano })
}

/// Division that rounds away from zero.
fn divide_up(number: i128, divisor: i128) -> i128 {
    let quotient = number / divisor;
    if number % divisor == 0 { quotient } else { quotient + number.signum() }
}

fn saturate(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        // Small and fractional amounts would be rounded by a binary suffix.
        if self.format == Format::BinarySi && self.is_whole() && self.nano.abs() >= 1024 * NANO {
            let mut number = self.nano / NANO;
            let mut step = 0;
            while number % 1024 == 0 && step < 6 {
                number /= 1024;
                step += 1;
            }
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step]);
        }
        let mut number = self.nano;
        let mut power = -9_i32;
        let largest = if self.format == Format::DecimalExponent { i32::MAX } else { 18 };
        while number % 1000 == 0 && power < largest {
            number /= 1000;
            power += 3;
        }
        if self.format == Format::DecimalExponent {
            return if power == 0 { write!(f, "{number}") } else { write!(f, "{number}e{power}") };
        }
        let suffix = match power {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            18 => "E",
            _ => "",
        };
        write!(f, "{number}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

/// A sum is printed as its left side is, or as its right side when the left is zero.
impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: self.nano.saturating_add(other.nano), format }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: self.nano.saturating_sub(other.nano), format }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nano: self.nano.saturating_neg(), format: self.format }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

type ApiQuantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity;

impl TryFrom<&ApiQuantity> for Quantity {
    type Error = QuantityError;

    fn try_from(quantity: &ApiQuantity) -> Result<Self, QuantityError> {
        quantity.0.parse()
    }
}

impl From<Quantity> for ApiQuantity {
    fn from(quantity: Quantity) -> Self {
        Self(quantity.to_string())
    }
}

/// A quantity in an object: a string, or a bare JSON number.
impl TryFrom<&serde_json::Value> for Quantity {
    type Error = QuantityError;

    fn try_from(value: &serde_json::Value) -> Result<Self, QuantityError> {
        match value {
            serde_json::Value::String(text) => text.parse(),
            serde_json::Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError::Format),
        }
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ApiQuantity::deserialize(deserializer)?.0.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).map_or_else(|error| format!("{error:?}"), |q| q.to_string())
    }

    #[test]
    fn quantities_print_canonically() {
        for (written, printed) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("+5", "5"),
            ("-1", "-1"),
            ("-0.5Gi", "-512Mi"),
            ("1Ki", "1Ki"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1.1Ki", "1126400m"),
            ("100Ki", "100Ki"),
            ("2048Ei", "9223372036854775807"),
            ("1000", "1k"),
            ("1500k", "1500k"),
            ("1e3", "1e3"),
            ("12E6", "12e6"),
            ("12000e3", "12e6"),
            ("100e-2", "1"),
            ("5E", "5E"),
            ("1000E", "1000E"),
            ("0.0000000001", "1n"),
            ("1.0000000001", "1000000001n"),
            ("000128974848", "128974848"),
            ("123.456Ki", "126418944m"),
            ("", "Format"),
            ("1 Gi", "Format"),
            ("abc", "Format"),
            ("1.2.3", "Format"),
            (".", "Numeric"),
            ("1ki", "Suffix"),
            ("1K", "Suffix"),
            ("1e", "Suffix"),
            ("1mi", "Suffix"),
            ("--1", "Format"),
            ("1e99999", "Numeric"),
        ] {
            assert_eq!(canonical(written), printed, "{written}");
        }
    }

    #[test]
    fn rounding_goes_up() {
        let q = |text: &str| Quantity::parse(text).unwrap();
        assert_eq!(q("1m").value(), 1);
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("-1500m").value(), -2);
        assert_eq!(q("1n").to_milli(), 1);
        assert_eq!(q("2.5").to_milli(), 2500);
        assert_eq!(q("10000E").value(), i64::MAX);
    }

    #[test]
    fn arithmetic_keeps_the_format() {
        let q = |text: &str| Quantity::parse(text).unwrap();
        assert_eq!((q("1Gi") + q("1Mi")).to_string(), "1025Mi");
        assert_eq!((q("0") + q("1Mi")).to_string(), "1Mi");
        assert_eq!((q("1") - q("250m")).to_string(), "750m");
        assert_eq!([q("100m"), q("1")].into_iter().sum::<Quantity>().to_string(), "1100m");
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1000m"), q("1"));
    }
}
