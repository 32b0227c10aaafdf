//! Sizes and durations as people write and read them.

use std::time::Duration;

const SUFFIXES: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// `2T`, `10G`, `512M`, `1.5GiB`, `4096`: powers of 1,024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write it like 512M, 10G or 2T");
    let upper = text.trim().to_ascii_uppercase();
    let bare = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let (number, shift) = match bare.chars().last().and_then(|last| SUFFIXES.iter().find(|(letter, _)| *letter == last))
    {
        Some((letter, shift)) => (bare.strip_suffix(*letter).unwrap_or(bare), *shift),
        None => (bare, 0),
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(wrong());
    }
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is larger than any disk"));
    }
    let fraction: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = fraction * (1u64 << shift) as f64;
    if bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(format!("`{text}` is larger than any disk")) }
}

/// `7d`, `12h`, `30m`, `45s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; write it like 45s, 30m, 12h or 7d");
    let text = text.trim();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1u64,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// `A-B`, first and last byte, inclusive; `A-` reads to the end.
pub fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let wrong = || format!("`{text}` is not a range; write first and last byte, like 0-1023, or 1024- for the rest");
    let (first, last) = text.trim().split_once('-').ok_or_else(wrong)?;
    let first: u64 = first.parse().map_err(|_| wrong())?;
    let last: u64 = if last.is_empty() { u64::MAX } else { last.parse().map_err(|_| wrong())? };
    if first > last { Err(format!("the range `{text}` ends before it begins")) } else { Ok((first, last)) }
}

/// `3.2 GiB`.
pub fn show_size(bytes: u64) -> String {
    let unit = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut names = unit.iter();
    let mut name = names.next().copied().unwrap_or_default();
    for next in names {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        name = next;
    }
    if bytes < 1024 { format!("{bytes} B") } else { format!("{value:.1} {name}") }
}

/// `1.2 GiB/s`; nothing sensible can be said of no time at all.
pub fn show_rate(bytes: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(1e-6);
    format!("{}/s", show_size((bytes as f64 / seconds) as u64))
}

/// `3 d 4 h`, `12 min 5 s`, `0.42 s`.
pub fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.2} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// `2026-05-04 13:22:01Z`, from Unix milliseconds. (Civil date from a day count, Howard Hinnant's algorithm.)
pub fn show_time(unix_ms: u64) -> String {
    let (day, second) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    let z = day + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (date, month) = (of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("2T"), Ok(2 << 40));
        assert_eq!(parse_size("10g"), Ok(10 << 30));
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("1.5K"), Ok(1536));
        assert_eq!(parse_size("4096"), Ok(4096));
        for wrong in ["", "T", "-1", "ten", "1e9", "1.2.3M", "99999999999999P", "nan", "inf"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(parse_duration("12h"), Ok(Duration::from_secs(43_200)));
        assert_eq!(parse_duration("30m"), Ok(Duration::from_secs(1800)));
        assert_eq!(parse_duration("45s"), Ok(Duration::from_secs(45)));
        for wrong in ["", "7", "d", "-7d", "7w", "999999999999999999d", "7é"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_are_inclusive_and_ordered() {
        assert_eq!(parse_range("0-0"), Ok((0, 0)));
        assert_eq!(parse_range("10-"), Ok((10, u64::MAX)));
        for wrong in ["", "-", "5", "5-4", "-5", "a-b"] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_print_as_utc() {
        assert_eq!(show_time(0), "1970-01-01 00:00:00Z");
        assert_eq!(show_time(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(show_time(1_767_225_599_000), "2025-12-31 23:59:59Z");
    }

    #[test]
    fn sizes_print_short() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_size(5 << 40), "5.0 TiB");
    }
}
