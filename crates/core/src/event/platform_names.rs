//! How a statement may call WhatsApp.

use super::fold;

/// The names by which a statement may call WhatsApp.
#[derive(Clone, Debug)]
pub struct PlatformNames(pub(super) Vec<String>);

impl PlatformNames {
    /// The name, and how it is written in other scripts.
    pub const DEFAULT: [&'static str; 17] = [
        "WhatsApp",
        "व्हाट्सएप",
        "व्हाट्सऐप",
        "व्हॉट्सऐप",
        "व्हाट्सप्प",
        "वॉट्सऐप",
        "واتساب",
        "واتس اب",
        "واتس آب",
        "واٹس ایپ",
        "হোয়াটসঅ্যাপ",
        "வாட்ஸ்அப்",
        "Ватсап",
        "Вотсап",
        "וואטסאפ",
        "왓츠앱",
        "ワッツアップ",
    ];

    /// These names, whatever their case. Blank ones are left out: they would fit any statement.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(fold).filter(|name| !name.trim().is_empty()).collect())
    }
}

impl Default for PlatformNames {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}
