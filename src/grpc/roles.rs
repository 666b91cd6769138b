//! What the client of a connection may do, by the names in its certificate.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use consentd_tls::peer_names;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;

/// What a client may do.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Check, and read a pair's consent and the sidecar's status.
    Check,
    /// Watch changes, which name users.
    Watch,
    /// Record events, and read histories.
    Record,
    /// Erase users.
    Erase,
}

impl Role {
    /// The role's name in `[roles]`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Watch => "watch",
            Self::Record => "record",
            Self::Erase => "erase",
        }
    }
}

/// A set of roles.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct RoleSet(u8);

impl RoleSet {
    fn with(self, role: Role) -> Self {
        Self(self.0 | Self::bit(role))
    }

    fn has(self, role: Role) -> bool {
        self.0 & Self::bit(role) != 0
    }

    fn bit(role: Role) -> u8 {
        match role {
            Role::Check => 1,
            Role::Watch => 2,
            Role::Record => 4,
            Role::Erase => 8,
        }
    }
}

/// The roles of clients by the names in their certificates: DNS names, and URIs such as SPIFFE ids. Clones
/// share them.
#[derive(Clone, Debug, Default)]
pub struct Roles(Arc<BTreeMap<String, RoleSet>>);

impl Roles {
    /// The roles of these names. DNS names are compared without regard to case.
    #[must_use]
    pub fn new(roles: &BTreeMap<String, Vec<Role>>) -> Self {
        let named = |(name, roles): (&String, &Vec<Role>)| {
            let is_uri = name.contains(':');
            let name = if is_uri { name.clone() } else { name.to_ascii_lowercase() };
            (name, roles.iter().copied().fold(RoleSet::default(), RoleSet::with))
        };
        Self(Arc::new(roles.iter().map(named).collect()))
    }

    /// The roles of a client: those of all its names.
    fn of(&self, certificate: &CertificateDer<'_>) -> RoleSet {
        let names = peer_names(certificate);
        let roles = names.iter().filter_map(|name| self.0.get(name));
        RoleSet(roles.fold(0, |all, roles| all | roles.0))
    }
}

/// The roles of one connection's client.
#[derive(Clone, Default)]
pub(super) struct Peer(Option<(Roles, Arc<OnceLock<RoleSet>>)>);

impl Peer {
    /// A client of a listener where roles count. It has none until its certificate is known.
    pub(super) fn with_roles(roles: Roles) -> Self {
        Self(Some((roles, Arc::default())))
    }

    /// Notes the client's certificate, which the handshake has verified.
    pub(super) fn identified(&self, certificate: &CertificateDer<'_>) {
        if let Some((roles, found)) = &self.0 {
            let _ = found.set(roles.of(certificate));
        }
    }

    /// Whether the client has a role; `None` where roles do not count.
    pub(super) fn has(&self, role: Role) -> Option<bool> {
        let (_, found) = self.0.as_ref()?;
        Some(found.get().is_some_and(|roles| roles.has(role)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_set_has_the_roles_that_it_was_made_of() {
        let set = RoleSet::default().with(Role::Check).with(Role::Erase);
        let has = [Role::Check, Role::Watch, Role::Record, Role::Erase].map(|role| set.has(role));
        assert_eq!(has, [true, false, false, true]);
    }

    #[test]
    fn peer_without_a_certificate_has_no_role() {
        let listed = BTreeMap::from([("crm.example".to_owned(), vec![Role::Record])]);
        assert_eq!(Peer::with_roles(Roles::new(&listed)).has(Role::Record), Some(false));
        assert_eq!(Peer::default().has(Role::Record), None);
    }
}
