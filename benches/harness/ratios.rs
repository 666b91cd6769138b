//! The ratios of two programs that were measured by turns.

/// Prints the median, the least and the most of the ratios, of which each is of one round.
pub fn print(what: &str, ratios: impl Iterator<Item = f64>) {
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "{what}: {:.3} in the median, {:.3} to {:.3}",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1],
    );
}
