//! Log levels of this replica, for operators.

use std::sync::Arc;

use jump_proto::control_v1 as wire;
use jump_proto::control_v1::log_service_server::LogService;
use jump_proto::convert::Fields;
use jump_telemetry::log::{self, LogHandle};
use tonic::{Request, Response, Status};

use super::{Context, ServiceError, caller};

/// `LogService`.
#[derive(Debug)]
pub struct LogApi {
    context: Arc<Context>,
}

impl LogApi {
    /// The service.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    fn replica(&self) -> String {
        self.context.profile.advertise.clone()
    }
}

fn handle() -> Result<LogHandle, ServiceError> {
    log::handle().ok_or_else(|| ServiceError::Precondition("this replica writes no log".to_owned()))
}

#[tonic::async_trait]
impl LogService for LogApi {
    async fn get_log_levels(
        &self,
        request: Request<wire::GetLogLevelsRequest>,
    ) -> Result<Response<wire::GetLogLevelsResponse>, Status> {
        caller::reader(&request)?;
        let levels = handle()?.filter();
        Ok(Response::new(wire::GetLogLevelsResponse { levels, replica: self.replica() }))
    }

    async fn set_log_levels(
        &self,
        request: Request<wire::SetLogLevelsRequest>,
    ) -> Result<Response<wire::SetLogLevelsResponse>, Status> {
        let operator = caller::operator(&request)?;
        let asked = request.into_inner().levels;
        let handle = handle()?;
        if asked.is_empty() {
            handle.reset_filter();
        } else {
            let mut fields = Fields::default();
            let set = fields.take("levels", handle.set_filter(&asked));
            fields.finish(|| set).map_err(ServiceError::from)?;
        }
        let levels = handle.filter();
        tracing::info!(filter = levels, operator = operator.name(), "log levels changed by an operator");
        Ok(Response::new(wire::SetLogLevelsResponse { levels, replica: self.replica() }))
    }
}
