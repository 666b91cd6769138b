//! The RPCs of the contract. The router establishes the method of a call once, by its path.

use super::pb::{consent_service_server, record_service_server};
use super::roles::Role;

/// A method of the contract.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Method {
    CanSend,
    BatchCanSend,
    StreamCanSend,
    FilterRecipients,
    GetConsent,
    WatchConsents,
    GetStatus,
    RecordEvent,
    RecordEvents,
    ListEvents,
    ExportEvents,
    CheckEvents,
    ListUserEvents,
    ListDueOptIns,
    EraseUser,
}

/// A service of the contract.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Service {
    Consent,
    Record,
}

impl Service {
    /// The service's full name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Consent => consent_service_server::SERVICE_NAME,
            Self::Record => record_service_server::SERVICE_NAME,
        }
    }
}

impl Method {
    /// All methods. `CanSend`, which most calls are of, comes first.
    pub(super) const ALL: [Self; 15] = [
        Self::CanSend,
        Self::BatchCanSend,
        Self::StreamCanSend,
        Self::FilterRecipients,
        Self::GetConsent,
        Self::WatchConsents,
        Self::GetStatus,
        Self::RecordEvent,
        Self::RecordEvents,
        Self::ListEvents,
        Self::ExportEvents,
        Self::CheckEvents,
        Self::ListUserEvents,
        Self::ListDueOptIns,
        Self::EraseUser,
    ];

    /// The method that is called by this path of a request.
    pub(super) fn from_path(path: &str) -> Option<Self> {
        let name = path.strip_prefix('/')?;
        Self::ALL.into_iter().find(|method| method.full_name() == name)
    }

    /// The name with its service's: `consent.v1.ConsentService/CanSend`.
    pub(super) const fn full_name(self) -> &'static str {
        match self {
            Self::CanSend => "consent.v1.ConsentService/CanSend",
            Self::BatchCanSend => "consent.v1.ConsentService/BatchCanSend",
            Self::StreamCanSend => "consent.v1.ConsentService/StreamCanSend",
            Self::FilterRecipients => "consent.v1.ConsentService/FilterRecipients",
            Self::GetConsent => "consent.v1.ConsentService/GetConsent",
            Self::WatchConsents => "consent.v1.ConsentService/WatchConsents",
            Self::GetStatus => "consent.v1.ConsentService/GetStatus",
            Self::RecordEvent => "consent.v1.RecordService/RecordEvent",
            Self::RecordEvents => "consent.v1.RecordService/RecordEvents",
            Self::ListEvents => "consent.v1.RecordService/ListEvents",
            Self::ExportEvents => "consent.v1.RecordService/ExportEvents",
            Self::CheckEvents => "consent.v1.RecordService/CheckEvents",
            Self::ListUserEvents => "consent.v1.RecordService/ListUserEvents",
            Self::ListDueOptIns => "consent.v1.RecordService/ListDueOptIns",
            Self::EraseUser => "consent.v1.RecordService/EraseUser",
        }
    }

    /// The name without its service's.
    pub(super) fn name(self) -> &'static str {
        let full = self.full_name();
        full.rsplit_once('/').map_or(full, |(_, name)| name)
    }

    pub(super) const fn service(self) -> Service {
        match self {
            Self::CanSend
            | Self::BatchCanSend
            | Self::StreamCanSend
            | Self::FilterRecipients
            | Self::GetConsent
            | Self::WatchConsents
            | Self::GetStatus => Service::Consent,
            Self::RecordEvent
            | Self::RecordEvents
            | Self::ListEvents
            | Self::ExportEvents
            | Self::CheckEvents
            | Self::ListUserEvents
            | Self::ListDueOptIns
            | Self::EraseUser => Service::Record,
        }
    }

    /// The role that a client needs where roles count.
    pub(super) const fn role(self) -> Role {
        match self {
            Self::CanSend
            | Self::BatchCanSend
            | Self::StreamCanSend
            | Self::FilterRecipients
            | Self::GetConsent
            | Self::GetStatus => Role::Check,
            Self::WatchConsents => Role::Watch,
            Self::RecordEvent
            | Self::RecordEvents
            | Self::ListEvents
            | Self::ExportEvents
            | Self::CheckEvents
            | Self::ListUserEvents
            | Self::ListDueOptIns => Role::Record,
            Self::EraseUser => Role::Erase,
        }
    }

    /// Whether requests or responses are streamed.
    pub(super) const fn is_stream(self) -> bool {
        match self {
            Self::CanSend
            | Self::BatchCanSend
            | Self::GetConsent
            | Self::GetStatus
            | Self::RecordEvent
            | Self::EraseUser => false,
            Self::StreamCanSend
            | Self::FilterRecipients
            | Self::WatchConsents
            | Self::RecordEvents
            | Self::ListEvents
            | Self::ExportEvents
            | Self::CheckEvents
            | Self::ListUserEvents
            | Self::ListDueOptIns => true,
        }
    }

    /// The method of these services whose full name is the most similar to `called`, if any is
    /// similar. For an error's hint.
    pub(super) fn most_similar(called: &str, services: &[&str]) -> Option<Self> {
        let served = Self::ALL.into_iter().filter(|one| services.contains(&one.service().name()));
        served
            .map(|one| (strsim::normalized_damerau_levenshtein(one.full_name(), called), one))
            .filter(|(similarity, _)| *similarity > 0.7)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, method)| method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_has_every_method_of_the_contract_with_its_service_and_kind() {
        let contract = prost_reflect::DescriptorPool::decode(crate::grpc::DESCRIPTOR_SET).unwrap();
        let methods = contract.services().flat_map(|service| {
            let of_service = service.methods().map(|method| {
                let is_stream = method.is_client_streaming() || method.is_server_streaming();
                let full_name = format!("{}/{}", service.full_name(), method.name());
                let service = service.full_name().to_owned();
                (full_name, service, method.name().to_owned(), is_stream)
            });
            of_service.collect::<Vec<_>>()
        });
        let methods: std::collections::BTreeSet<_> = methods.collect();
        let ours = Method::ALL.map(|method| {
            let service = method.service().name().to_owned();
            (method.full_name().to_owned(), service, method.name().to_owned(), method.is_stream())
        });
        assert_eq!(methods, ours.into());
    }

    #[test]
    fn from_path_takes_exact_paths_alone() {
        for method in Method::ALL {
            assert_eq!(Method::from_path(&format!("/{}", method.full_name())), Some(method));
            assert_eq!(Method::from_path(method.full_name()), None);
            assert_eq!(Method::from_path(&format!("/{}/", method.full_name())), None);
        }
    }
}
