//! Values of components' arguments.

use std::time::Duration;

use mussel_api::quantity::Quantity;

use crate::cli::args::values::duration;

pub fn boolean(text: &str) -> Result<bool, String> {
    // As Go's flags read them.
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// A number between two others.
pub fn number<T>(least: T, most: T) -> impl Fn(&str) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display + Copy,
{
    move |text| match text.trim().parse::<T>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("must be a number from {least} to {most}")),
    }
}

/// A time that is at least as long.
pub fn time(least: Duration) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| {
        let time = duration(text)?;
        if time < least { Err(format!("must not be less than {least:?}")) } else { Ok(time) }
    }
}

/// Bytes and the like: `10Mi`.
pub fn amount(text: &str) -> Result<u64, String> {
    let quantity = Quantity::parse(text.trim()).map_err(|error| error.to_string())?;
    u64::try_from(quantity.value()).map_err(|_| "must not be negative".to_owned())
}

/// Entries between commas, without the empty ones.
pub fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        assert_eq!(boolean("True"), Ok(true));
        assert!(boolean("yes").is_err());
        assert_eq!(number(1, 9)("9"), Ok(9));
        assert_eq!(number(1, 9)("10").unwrap_err(), "must be a number from 1 to 9");
        assert_eq!(time(Duration::from_secs(1))("1m"), Ok(Duration::from_secs(60)));
        assert!(time(Duration::from_secs(1))("500ms").is_err());
        assert_eq!(amount("10Mi"), Ok(10 << 20));
        assert!(amount("-1").is_err() && amount("much").is_err());
    }
}
